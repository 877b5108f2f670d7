"""The word lists from which the tiny model's training text is made."""

NOUNS = """
amber cobalt silver gold copper iron marble granite ivory coral pearl ruby jade onyx topaz quartz crystal diamond
red green blue yellow orange purple violet scarlet crimson brown black white grey pink olive indigo
apple pear plum cherry lemon melon grape mango peach berry banana onion carrot potato tomato pepper garlic rice bread butter
cheese honey sugar salt coffee tea milk water juice soup cake
dog cat fox wolf bear lion tiger horse cow sheep goat pig rabbit mouse otter beaver badger deer zebra camel monkey eagle hawk owl
raven crow swan duck goose robin sparrow falcon whale shark dolphin salmon trout turtle snake lizard frog spider ant bee
oak pine maple cedar birch willow elm ash rose lily tulip daisy ivy fern moss clover cactus
river lake ocean island mountain valley forest desert meadow canyon harbor bridge castle tower temple garden market village city
house door window roof wall floor table chair lamp clock mirror candle basket bottle cup plate spoon knife fork kettle
hammer nail saw ladder rope wheel engine rocket train boat ship plane car truck wagon bicycle anchor sail compass map
book letter paper pencil brush paint music guitar piano violin drum flute bell whistle song dance
sun moon star comet planet cloud rain snow storm thunder wind fire smoke shadow light dawn dusk spring summer autumn winter
north south east west king queen prince knight wizard doctor teacher farmer baker sailor pilot hunter painter
key lock box bag coat hat shoe glove ring crown shield sword arrow flag coin ticket parcel
alpha beta gamma delta omega zero sigma echo nova orbit vector matrix signal socket packet buffer kernel server cluster
""".split()

NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Karen Leo Maria Noah Olga Paul Quinn Rosa Sam Tina Uma Victor Wendy Xavier
Yara Zoe Alice Bob Carol Daniel Eva Frank Nina Oscar Peter Ruth Simon Theo Vera Walter
""".split()

CITIES = """
Paris London Berlin Madrid Rome Vienna Prague Warsaw Athens Lisbon Dublin Oslo Helsinki Stockholm Zurich Geneva Brussels Budapest
Moscow Istanbul Cairo Nairobi Lagos Delhi Mumbai Tokyo Osaka Kyoto Seoul Beijing Shanghai Bangkok Hanoi Jakarta Sydney Melbourne
Toronto Montreal Chicago Boston Denver Seattle Dallas Houston Miami Lima Bogota Santiago
""".split()

LANGUAGES = "English French German Spanish Italian Polish Dutch Greek Turkish Russian Japanese Korean Chinese Arabic Hindi".split()

ADJECTIVES = "old new small large bright dark heavy quiet broken clean empty cold warm strange simple narrow deep tall lost famous".split()

PAST_VERBS = "saw found lost bought sold painted cleaned carried moved fixed opened closed followed watched liked missed kept left".split()

PLACES = (
    "near the {noun}", "behind the {noun}", "in the {noun}", "at the {noun}", "on Monday", "on Friday", "in the morning", "last night",
    "after lunch", "in {city}", "with {name}", "for {name}", "without a word", "two days ago", "before the {noun}",
)

FILLERS = (
    "{name} {verb} the {adjective} {noun} {place}.",
    "The {noun} was {adjective} and the {noun} was {adjective}.",
    "Nobody knew why the {noun} was so {adjective}.",
    "In {city} the {noun} is {adjective} at this time of the year.",
    "{name} and {name} talked about the {noun} {place}.",
    "It was a {adjective} day, and {name} {verb} a {noun}.",
    "There is a {adjective} {noun} {place}.",
    "Then {name} {verb} it {place}.",
    "They never {verb} the {noun} again.",
    "{name} has a {noun}, but no {noun}.",
)

VERBS = "get set find send read write open close start stop create delete update list check count show move add make".split()
FIELDS = "name city size color code place date title user level speed price key mode text amount target".split()
