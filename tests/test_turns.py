"""Turns: a text in whatever pieces becomes the same thoughts, words and calls; grammars demand what readers read."""
from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferplane import LLM, SamplingParams, StructuredOutputs
from inferplane.errors import ConfigError
from inferplane.serving.turns.deepseek import CALL, CALL_END, CALLS, END, NAME
from inferplane.serving.turns.format import MOST_CALLS, Format, Offer, calls_only, calls_or_words, mark_of
from inferplane.serving.turns.formats import format_named, format_of, formats
from inferplane.serving.turns.reader import Arguments, Call, Piece, Reader, Thinking, Thought, Words

WEATHER = ("weather", {"city": "Bern \u2744 \"x\" {", "days": 3})
TIME = ("time.now", {})
WEATHER_JSON = json.dumps(WEATHER[1], ensure_ascii=False)
HERMES = f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER_JSON}}}\n</tool_call>'

TURNS: dict[str, tuple[str, str, str, list[tuple[str, Any]]]] = {
    "hermes": (
        "hermes", "Let me see.", f' \n{HERMES}\n<tool_call>\n{{"arguments": {{}}, "name": "time.now"}}\n</tool_call>\n',
        [WEATHER, TIME]),
    "hermes, no arguments": ("hermes", "", '<tool_call>{"name": "time.now"}</tool_call>', [TIME]),
    "hermes, arguments as a string": (
        "hermes", "", f'<tool_call>{{"name": "weather", "arguments": {json.dumps(WEATHER_JSON)}}}</tool_call>', [WEATHER]),
    "llama3": (
        "llama3_json", "", f'{{"name": "weather", "parameters": {WEATHER_JSON}}}; {{"name": "time.now", "parameters": {{}}}}',
        [WEATHER, TIME]),
    "llama3, tagged": (
        "llama3_json", "", f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {WEATHER_JSON}}}', [WEATHER]),
    "mistral": (
        "mistral", "", f'[TOOL_CALLS][{{"name": "weather", "arguments": {WEATHER_JSON}}}, {{"name": "time.now", "arguments": {{}}}}]',
        [WEATHER, TIME]),
    "mistral, new": ("mistral", "Well.", f"[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{WEATHER_JSON}[TOOL_CALLS]time.now{{}}", [WEATHER, TIME]),
    "deepseek": (
        "deepseek", "", (
            f"{CALLS}{CALL}function{NAME}weather\n```json\n{WEATHER_JSON}\n```{CALL_END}\n{CALL}function{NAME}time.now\n"
            f"```json\n{{}}\n```{CALL_END}{END}"
        ), [WEATHER, TIME]),
    "deepseek 3.1": ("deepseek", "One moment.", f"{CALLS}{CALL}weather{NAME}{WEATHER_JSON}{CALL_END}{END}", [WEATHER]),
    "pythonic": ("pythonic", "", "[weather(city='Bern \u2744 \"x\" {', days=3), time.now()]", [WEATHER, TIME]),
}
"""family, words before, text, calls"""


def read(reader: Reader, parts: list[str]) -> list[Piece]:
    return [piece for part in parts for piece in reader.push(part)] + reader.finish()


def calls(pieces: list[Piece]) -> list[tuple[str, Any]]:
    """(name, arguments) of each call; its arguments follow it, and its number counts."""
    names = [piece for piece in pieces if isinstance(piece, Call)]
    assert [one.number for one in names] == list(range(len(names)))
    texts = {one.number: "" for one in names}
    begun = -1
    for piece in pieces:
        begun = piece.number if isinstance(piece, Call) else begun
        if isinstance(piece, Arguments):
            assert piece.number == begun
            texts[piece.number] += piece.text
    return [(one.name, json.loads(texts[one.number])) for one in names]


def words(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Words))


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize(("name", "said", "text", "expected"), TURNS.values(), ids=TURNS)
@given(places=st.lists(st.integers(0, 400), max_size=30))
def test_calls_are_read_however_the_text_is_cut(name: str, said: str, text: str, expected: list[Any], places: list[int]) -> None:
    pieces = read(format_named(name).reader(), cut(said + text, places))
    assert calls(pieces) == expected
    assert words(pieces) == said


@pytest.mark.parametrize("turn", ["hermes", "llama3", "mistral", "mistral, new", "deepseek", "deepseek 3.1"])
def test_arguments_are_told_before_their_end(turn: str) -> None:
    name, _, text, _ = TURNS[turn]
    reader = format_named(name).reader()
    assert sum(any(isinstance(piece, Arguments) for piece in reader.push(character)) for character in text) > 10


NO_CALLS = (
    "Plain words.\n\nTwo paragraphs, [1] and {2}. ", "", "  ", "[", "[1, 2]", "{", "<", "<tool", "[TOOL", "see [TOOL", '{"a": 1}', "{]}",
    "[f(", "[f(1)]", "<tool_call> no", "[x", "a < b",
)


@pytest.mark.parametrize("name", formats())
@pytest.mark.parametrize("text", NO_CALLS)
@given(places=st.lists(st.integers(0, 60), max_size=10))
def test_what_is_no_call_is_words(name: str, text: str, places: list[int]) -> None:
    pieces = read(format_named(name).reader(), cut(text, places))
    assert calls(pieces) == []
    assert words(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("name", list(TURNS))
def test_a_call_that_is_cut_off_keeps_what_was_told(name: str) -> None:
    family, said, text, _ = TURNS[name]
    text = said + text
    whole = read(format_named(family).reader(), [text])
    told = "".join(piece.text for piece in whole if isinstance(piece, Arguments) and piece.number == 0)
    for end in range(len(text)):
        pieces = read(format_named(family).reader(), [text[:end]])
        assert told.startswith("".join(piece.text for piece in pieces if isinstance(piece, Arguments) and piece.number == 0))


@given(places=st.lists(st.integers(0, 200), max_size=20), inside=st.booleans())
def test_thoughts_stand_apart_from_words_and_calls(places: list[int], inside: bool) -> None:
    text = ("" if inside else "<think>") + f"It is <b>cold</b>.\n</think>\n\nSo: {HERMES}"
    pieces = read(Thinking(format_named("hermes").reader(), [("<think>", "</think>")], "</think>" if inside else ""), cut(text, places))
    assert "".join(piece.text for piece in pieces if isinstance(piece, Thought)) == "It is <b>cold</b>.\n"
    assert words(pieces).strip() == "So:"
    assert calls(pieces) == [WEATHER]


def test_a_template_says_its_format() -> None:
    assert (found := format_of(["{{ bos }}<tool_call>{{ call | tojson }}</tool_call>"])) is not None and found.name == "hermes"
    assert (found := format_of(["{{ '[TOOL_CALLS]' }}"])) is not None and found.name == "mistral"
    assert format_of(["nothing of the kind"]) is None
    with pytest.raises(ConfigError, match="hermes"):
        format_named("herme")


OFFERS = [
    Offer("weather", {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}, "unit": {"enum": ["C", "F"]},
    }}),
    Offer("time.now", {"type": "object", "properties": {}}),
]


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM(platform="cpu", kv_cache_memory_gb=0.1) as llm:
        yield llm


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", formats().values(), ids=formats())
def test_a_grammar_demands_what_its_reader_reads(llm: LLM, family: Format, several: bool) -> None:
    pytest.importorskip("llguidance")
    asked = StructuredOutputs(grammar=calls_only(family.grammar(OFFERS, mark_of(llm.engine.tokenizer), several=several)))
    answers = llm.generate(["Call the weather tool."] * 6, [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=160, structured_outputs=asked) for seed in range(6)])
    outputs = [answer.outputs[0] for answer in answers]
    assert several or sum(one.finish_reason == "stop" for one in outputs) >= 1
    for one in outputs:
        pieces = read(family.reader(), [one.text])
        assert not words(pieces).strip() or one.finish_reason == "length"
        if one.finish_reason == "stop":
            made = calls(pieces)
            assert 1 <= len(made) <= (MOST_CALLS if several else 1)
            for name, arguments in made:
                assert name in ("weather", "time.now") and set(arguments) <= {"city", "days", "unit"}
                assert name == "time.now" or len(arguments["city"]) <= 8


@pytest.mark.parametrize("family", formats().values(), ids=formats())
def test_a_choice_leaves_words_free_and_holds_calls(llm: LLM, family: Format) -> None:
    """What the grammar of words or calls takes, of texts by hand. Marks that this tokenizer does not have are not held."""
    library = pytest.importorskip("llguidance")
    tokenizer = llm.engine.tokenizer
    grammar = calls_or_words(family, family.grammar(OFFERS, mark_of(tokenizer), several=True), tokenizer, ["<think>"])
    assert (grammar is None) == bool(family.opening and tokenizer.added_id(family.opening) is None)
    if grammar is None:
        return
    tokens = library.LLTokenizer(tokenizer.to_json())

    def taken(text: str) -> bool:
        matcher = library.LLMatcher(tokens, library.LLMatcher.grammar_from_lark(grammar))
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer.encode(text)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    calls = {
        "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
        "llama3_json": '{"name": "weather", "parameters": {"city": "Bern"}}', "pythonic": '[weather(city="Bern")]',
    }
    call = calls[family.name]
    assert taken(call) and taken("It is <cold> in {Bern} and [Rome].\n\nSo\u2744.") and taken("")
    assert not taken(call.replace("Bern", "Bern and Rome")), "longer than the schema lets it be"
    assert not taken(call.replace("weather", "wether"))
    assert taken(f"Let me see.\n{call}")
