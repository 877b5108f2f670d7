"""The word lists from which the tiny model's training text is made."""

NOUNS = """
amber cobalt silver gold copper iron marble ivory coral pearl ruby jade onyx crystal diamond
red green blue yellow orange purple violet black white grey pink olive
apple pear plum cherry lemon melon grape mango peach berry banana onion carrot potato pepper rice bread butter
cheese honey sugar salt coffee tea milk water juice soup cake
dog cat fox wolf bear lion tiger horse cow sheep goat pig rabbit mouse otter deer zebra camel monkey eagle hawk owl
raven swan duck goose robin whale shark salmon turtle snake frog spider ant bee
oak pine maple cedar willow rose lily tulip fern moss
river lake ocean island mountain valley forest desert harbor bridge castle tower garden market city
house door window roof wall floor table chair lamp clock mirror candle basket bottle cup plate spoon knife
hammer nail rope wheel engine rocket train boat ship plane car truck anchor map
book letter paper pencil paint music guitar piano drum bell song
sun moon star comet planet cloud rain snow storm wind fire smoke shadow light winter summer
king queen prince doctor teacher farmer baker sailor pilot hunter
key lock box bag coat hat shoe ring crown shield sword arrow flag coin ticket
alpha beta gamma delta omega matrix signal socket packet kernel server
""".split()

NAMES = """
Anna Ben Clara David Emma Felix Henry Ida Jack Karen Leo Maria
Noah Olga Paul Rosa Sam Tina Victor Alice Bob Nina Oscar Peter
""".split()

CITIES = "Paris London Berlin Madrid Rome Vienna Prague Athens Lisbon Dublin Oslo Cairo Delhi Tokyo Seoul Sydney Boston Denver Lima".split()

LANGUAGES = "English French German Spanish Italian Greek Russian Japanese".split()

ADJECTIVES = "old new small large bright dark heavy quiet empty cold warm strange".split()

PAST_VERBS = "saw found lost bought sold moved opened liked missed left".split()

PLACES = (
    "near the {noun}",
    "behind the {noun}",
    "in the {noun}",
    "at the {noun}",
    "on Monday",
    "on Friday",
    "in the morning",
    "last night",
    "after lunch",
    "in {city}",
    "with {name}",
    "for {name}",
    "without a word",
    "two days ago",
    "before the {noun}",
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

VERBS = "get set find send read write open close start stop list check".split()
FIELDS = "name city size color code place date title user level price text".split()
