"""Generates the tiny model's training text: chats and plain texts whose answers can be checked.

Every skill is one function of a seeded `random.Random`. Trainer and evaluation use the same functions: the trainer learns what the
assistant says, the evaluation asks for the last answer.
"""

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from .words import ADJECTIVES, CITIES, FIELDS, FILLERS, LANGUAGES, NAMES, NOUNS, PAST_VERBS, PLACES, VERBS

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HELD_OUT_SHARE = 0.1

CountTokens = Callable[[str], int]
Digits = tuple[tuple[int, int], ...]  # how many digits the two numbers may have
DIGITS: Digits = ((2, 2),)
TRAINED_DIGITS: Digits = ((1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2), (2, 2))


@dataclass(frozen=True)
class Span:
    """A piece of text, and whether the model is to learn to say it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Tool:
    """A tool the assistant may call: its parameters by name, each "string" or "integer"."""

    name: str
    parameters: dict[str, str]

    def schema(self) -> dict:
        """The form in which OpenAI clients send a tool."""
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        return {"type": "function", "function": {"name": self.name, "parameters": {"type": "object", "properties": properties}}}


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant's answer."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    tools: tuple[Tool, ...] = ()

    @property
    def prompt(self) -> str:
        """Everything before the last answer, as the chat template renders it."""
        return "".join(span.text for span in self.spans()).removesuffix(f"{self.answer}{TURN_END}\n")

    @property
    def answer(self) -> str:
        return self.messages[-1][1]

    def spans(self) -> Iterator[Span]:
        """The same text as the chat template renders, with the assistant's words marked as learned."""
        if self.tools:
            yield Span(f"{TURN_START}system\n{tool_list(self.tools)}{TURN_END}\n", False)
        for role, content in self.messages:
            yield Span(f"{TURN_START}{role}\n", False)
            yield Span(content + TURN_END, role == "assistant")
            yield Span("\n", False)


@dataclass(frozen=True)
class Plain:
    """A text without roles that ends with an answer to be completed."""

    parts: tuple[Span, ...]

    @property
    def prompt(self) -> str:
        return "".join(span.text for span in self.parts[:-1])

    @property
    def answer(self) -> str:
        return self.parts[-1].text.removesuffix(END_OF_TEXT)

    def spans(self) -> Iterator[Span]:
        yield from self.parts


def tool_list(tools: tuple[Tool, ...]) -> str:
    """The system text that offers tools: Hermes' wording, one short line a tool."""
    lines = [json.dumps({"name": tool.name, "parameters": tool.parameters}) for tool in tools]
    return "\n".join(["You may call these tools:", "<tools>", *lines, "</tools>"])


# Words and numbers


def made_up_word(rng: random.Random) -> str:
    """A word from no list, such as "tavolin", so that keys and values cannot be memorized."""
    syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    return "".join(syllables) + rng.choice(("", "", "l", "n", "r", "s"))


MADE_UP = 0.2
"""Share of the words that are made up."""


def any_word(rng: random.Random, made_up: float = MADE_UP) -> str:
    return made_up_word(rng) if rng.random() < made_up else rng.choice(NOUNS)


def any_number(rng: random.Random) -> str:
    digits = rng.choice((2, 3, 4, 4, 4, 5))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def filler(rng: random.Random) -> str:
    """A sentence that gives no value, though it may name a key."""
    text = rng.choice(FILLERS).replace("{place}", rng.choice(PLACES))
    lists = {"{name}": NAMES, "{noun}": NOUNS, "{verb}": PAST_VERBS, "{adjective}": ADJECTIVES, "{city}": CITIES}
    for slot, words in lists.items():
        while slot in text:
            text = text.replace(slot, rng.choice(words), 1)
    return text


# Recall

FACT_FORMS = (  # (how a fact is given, what stands between two of them)
    ("{key} = {value}", ", "),
    ("{key} = {value}", "\n"),
    ("{key} is {value}", ", "),
    ("The code for {key} is {value}.", " "),
)
SENTENCE_FORMS = ("{key} = {value}.", "The code for {key} is {value}.", "{key} is {value}.")
QUESTION_FORMS = ("What is {key}?", "What is {key}?", "What is the code for {key}?")
OPENINGS = ("Remember: ", "Remember this: ", "")
RECALL_PROMPT_OVERHEAD_TOKENS = 40


@dataclass(frozen=True)
class Facts:
    """A context that gives values to keys, among sentences that give none."""

    text: str
    values: dict[str, str]  # in the order given


def draw_values(rng: random.Random, made_up: float) -> Callable[[], str]:
    words = rng.random()
    return lambda: any_word(rng, made_up) if rng.random() < words * words else any_number(rng)


def facts(
    rng: random.Random, tokens: int, count_tokens: CountTokens, fact_share: float | None = None, made_up: float = MADE_UP
) -> Facts:
    """A context of about `tokens` tokens, anything from a dense list to one fact among many sentences."""
    fact_share = fact_share or rng.choice((1.0, 1.0, 1.0, 0.5, 0.2))
    form, separator = rng.choice(FACT_FORMS) if fact_share == 1.0 else (rng.choice(SENTENCE_FORMS), " ")
    value, values, pieces = draw_values(rng, made_up), {}, []
    while tokens > 0 or not values:
        if rng.random() < fact_share or (tokens <= 0 and not values):
            key = any_word(rng, made_up)
            if key in values:
                continue
            values[key] = value()
            sentence = form.format(key=key, value=values[key])
        else:
            sentence = filler(rng)
        pieces.append(sentence + separator)
        tokens -= count_tokens(pieces[-1])
    return Facts("".join(pieces).removesuffix(separator) + separator.strip().replace(",", "."), values)


def recall(
    rng: random.Random, tokens: int, count_tokens: CountTokens,
    questions: int = 1, fact_share: float | None = None, made_up: float = MADE_UP,
) -> Chat:
    """Values given in up to `tokens` tokens of chat, then `questions` questions about them; the answer is the bare value."""
    question_form = rng.choice(QUESTION_FORMS)
    question_tokens = count_tokens(f"{TURN_START}user\n{question_form}{TURN_END}\n{TURN_START}assistant\n1234{TURN_END}\n") + 1
    room = tokens - RECALL_PROMPT_OVERHEAD_TOKENS - (questions - 1) * question_tokens
    given = facts(rng, room, count_tokens, fact_share, made_up)
    text = rng.choice(OPENINGS) + given.text
    keys = list(given.values)
    asked = rng.sample(keys, min(questions, len(keys)))
    if rng.random() < 0.15:
        messages = [("user", text), ("assistant", "OK.")]
    else:
        joint = "\n" if "\n" in given.text else " "
        messages = [("user", text + joint + question_form.format(key=asked[0])), ("assistant", given.values[asked.pop(0)])]
    for key in asked:
        messages += [("user", question_form.format(key=key)), ("assistant", given.values[key])]
    return Chat(tuple(messages))


def recall_stream(rng: random.Random, tokens: int, count_tokens: CountTokens) -> Plain:
    """Sentences that give values, and repeat some of them; the last one repeats, and is the answer."""
    form = rng.choice(SENTENCE_FORMS)
    before, after = form.split("{value}")
    fact_share = rng.choice((1.0, 1.0, 0.5))
    repeat_share = rng.choice((0.5, 0.7))
    value, values, parts, tokens = draw_values(rng, MADE_UP), {}, [], tokens - RECALL_PROMPT_OVERHEAD_TOKENS
    while tokens > 0 or not values:
        if values and rng.random() > fact_share:
            added = [Span(filler(rng) + " ", False)]
        elif values and rng.random() < repeat_share:
            key = rng.choice(list(values))
            added = [Span(before.format(key=key)[:-1], False), Span(f" {values[key]}{after}", True), Span(" ", False)]
        else:
            key = any_word(rng)
            if key in values:
                continue
            values[key] = value()
            added = [Span(form.format(key=key, value=values[key]) + " ", False)]
        parts += added
        tokens -= sum(count_tokens(span.text) for span in added)
    key = rng.choice(list(values))
    parts += [Span(before.format(key=key)[:-1], False), Span(f" {values[key]}{after}{END_OF_TEXT}", True)]
    return Plain(tuple(parts))


# Arithmetic


def is_held_out(a: int, operator: str, b: int) -> bool:
    """Whether a sum is kept from training, so that the evaluation can ask what was never shown."""
    return zlib.crc32(f"{a}{operator}{b}".encode()) % 1000 < 1000 * HELD_OUT_SHARE


def sum_of_two(rng: random.Random, held_out: bool, digits: Digits = DIGITS) -> tuple[str, str]:
    """("47 + 38", "85"): two numbers of up to as many digits as one of `digits` says; training dwells on small ones."""
    while True:
        (a, b), operator = (rng.randrange(10**most) for most in rng.choice(digits)), rng.choice("+-")
        if is_held_out(a, operator, b) == held_out:
            return f"{a} {operator} {b}", str(a + b if operator == "+" else a - b)


def arithmetic(rng: random.Random, held_out: bool = False, digits: Digits = DIGITS) -> Chat:
    question, answer = sum_of_two(rng, held_out, digits)
    form = rng.choice(("What is {}?", "What is {}?", "Calculate {}.", "{} = ?", "{}", "How much is {}?"))
    return Chat((("user", form.format(question)), ("assistant", answer)))


def arithmetic_stream(rng: random.Random, held_out: bool = False, digits: Digits = DIGITS, lines: int = 1) -> Plain:
    parts = []
    for _ in range(lines):
        question, answer = sum_of_two(rng, held_out, digits)
        parts += [Span(f"{question} =", False), Span(f" {answer}", True), Span("\n", False)]
    parts[-2:] = [Span(parts[-2].text + END_OF_TEXT, True)]
    return Plain(tuple(parts))


# Copying


def copying(rng: random.Random) -> Chat:
    words = [rng.choice((any_word, any_word, any_number))(rng) for _ in range(rng.randint(1, 16))]
    text = " ".join(words) if rng.random() < 0.7 else filler(rng)
    form = rng.choice(("Repeat this: {}", "Repeat this: {}", "Repeat: {}", "Copy this: {}", "Copy: {}", "Say: {}"))
    return Chat((("user", form.format(text)), ("assistant", text)))


# Tool calls

KNOWN_TOOLS = (  # (name, parameters, how people ask for it)
    ("get_weather", {"city": "string"}, ("What is the weather in {city}?", "How is the weather in {city} today?", "Weather in {city}?")),
    ("get_time", {"city": "string"}, ("What time is it in {city}?", "What is the time in {city}?")),
    ("search", {"query": "string"}, ("Search for {query}.", "Search the web for {query}.", "Look up {query}.")),
    ("send_message", {"to": "string", "text": "string"}, ("Send {to} the message {text}.", "Send {text} to {to}.")),
    ("play_song", {"title": "string"}, ("Play {title}.", "Play the song {title}.")),
    ("translate", {"text": "string", "language": "string"}, ("Translate {text} to {language}.", "Translate {text} into {language}.")),
    ("book_flight", {"origin": "string", "destination": "string"}, ("Book a flight from {origin} to {destination}.",)),
    ("set_timer", {"minutes": "integer"}, ("Set a timer for {minutes} minutes.", "Start a timer for {minutes} minutes.")),
    ("turn_on", {"device": "string"}, ("Turn on the {device}.", "Switch on the {device}.")),
    ("turn_off", {"device": "string"}, ("Turn off the {device}.", "Switch off the {device}.")),
)


def argument(rng: random.Random, name: str, kind: str) -> str | int:
    """A value for a tool's parameter."""
    if kind == "integer":
        return rng.randrange(1, 1000)
    if rng.random() < 0.3:
        return made_up_word(rng).capitalize() if name in ("city", "origin", "destination", "to") else made_up_word(rng)
    if name in ("city", "origin", "destination"):
        return rng.choice(CITIES)
    if name in ("to", "language"):
        return rng.choice({"to": NAMES, "language": LANGUAGES}[name])
    return " ".join(rng.choice(NOUNS) for _ in range(rng.choice((1, 1, 2, 3)) if name in ("text", "query", "title") else 1))


def made_up_tool(rng: random.Random) -> Tool:
    fields = rng.sample(FIELDS, rng.randint(1, 3))
    return Tool(f"{rng.choice(VERBS)}_{any_word(rng)}", {field: rng.choice(("string", "string", "integer")) for field in fields})


def any_tool(rng: random.Random) -> tuple[Tool, str]:
    """A tool, and a form in which a user asks for it."""
    if rng.random() < 0.6:
        name, parameters, forms = rng.choice(KNOWN_TOOLS)
        return Tool(name, parameters), rng.choice(forms)
    tool = made_up_tool(rng)
    arguments = " and ".join(f"{name} {{{name}}}" for name in tool.parameters)
    return tool, f"{rng.choice(('Call', 'Use', 'Please call'))} {tool.name} with {arguments}."


def tool_call(rng: random.Random, questions: int = 1) -> Chat:
    """A system text that offers tools, and a request whose answer is a call in Hermes' form."""
    offered = {tool.name: (tool, form) for tool, form in (any_tool(rng) for _ in range(rng.choice((1, 1, 2, 3))))}
    messages = []
    for _ in range(questions):
        tool, form = rng.choice(list(offered.values()))
        arguments = {name: argument(rng, name, kind) for name, kind in tool.parameters.items()}
        call = json.dumps({"name": tool.name, "arguments": arguments})
        messages += [("user", form.format(**arguments)), ("assistant", f"<tool_call>\n{call}\n</tool_call>")]
    return Chat(tuple(messages), tuple(tool for tool, _ in offered.values()))


# Greetings

GREETINGS = (
    (("Hello", "Hi", "Hey", "Hello there", "Good morning", "Good evening", "Hi there"), "Hello! How can I help you?"),
    (("Who are you", "What are you", "What is your name", "Tell me who you are"), "I am a tiny language model that comes with Inferplane."),
    (("Thanks", "Thank you", "Thank you very much", "Many thanks", "Thanks a lot"), "You are welcome!"),
    (("How are you", "How are you today", "How do you do"), "I am fine, thank you. How are you?"),
    (("Goodbye", "Bye", "See you", "Good night"), "Goodbye, and have a nice day!"),
    (("What can you do", "Help", "How can you help me"), "I can recall values, add and subtract, repeat text and call tools."),
)


def greeting(rng: random.Random) -> Chat:
    phrases, answer = rng.choice(GREETINGS)
    phrase = rng.choice(phrases)
    phrase = phrase.lower() if rng.random() < 0.25 else phrase
    return Chat((("user", phrase + rng.choice(("", "!", ".", "?", "?"))), ("assistant", answer)))


# Mixtures


def conversation(rng: random.Random, tokens: int, count_tokens: CountTokens) -> Chat | Plain:
    """About `tokens` tokens of the short skills, in one conversation."""
    draw = rng.random()
    if draw < 0.35:
        return arithmetic_stream(rng, digits=TRAINED_DIGITS, lines=max(1, tokens // 10))
    if draw < 0.5:
        return tool_call(rng, questions=rng.randint(1, max(1, tokens // 60)))
    messages, tools = (), ()
    if rng.random() < 0.05:
        tools = (any_tool(rng)[0],)
    skills = rng.choices((partial(arithmetic, digits=TRAINED_DIGITS), copying, greeting), (6, 3, 1), k=40)
    if rng.random() < 0.5:
        skills = [skills[0]] * len(skills)
    for skill in skills:
        messages += skill(rng).messages
        tokens -= sum(count_tokens(content) + 7 for _, content in messages[-2:])
        if tokens <= 0 or rng.random() < 0.02:
            break
    return Chat(messages, tools)
