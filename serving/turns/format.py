"""How a family of models writes the calls of a turn: what reads them, and the grammar that demands them."""
from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from ...core.structured import StructuredOutputs
from ...core.tokenizer import Tokenizer
from ...errors import RequestError
from .reader import Reader

Mark = Callable[[str], str]
"""A mark's text -> its term in a Lark grammar: a special token where the tokenizer has one for it, otherwise a string."""
MOST_CALLS = 16
"""That a grammar lets a turn make; a model that knows no end would fill its context with them."""
WHITESPACE = {"whitespace_pattern": " "}


class Offer(NamedTuple):
    """A tool that may be called. parameters: the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


def mark_of(tokenizer: Tokenizer) -> Mark:
    """For grammars over this tokenizer."""
    def mark(text: str) -> str:
        token = tokenizer.added_id(text)
        return quoted(text) if token is None else f"<[{token}]>"

    return mark


class Format(ABC):
    """One family's way. Found by its name in the entry-point group `inferplane.tool_formats`, or by its marks in a chat template."""

    name: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    """A chat template that has one of these is of this family."""
    special: ClassVar[bool] = False
    """Its marks are special tokens, which must not be left out of the text."""
    opening: ClassVar[str] = ""
    """The mark before a turn's calls, wherever they stand. Empty: a turn calls from its first character on, or not at all."""
    bracket: ClassVar[str] = ""
    """Without such a mark: the character that calls begin with, and words then do not."""

    @abstractmethod
    def reader(self) -> Reader: ...

    @abstractmethod
    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        """In llguidance's Lark, the rule `calls` and what it needs: one of the tools is called, or `several` are."""


def calls_only(rules: str) -> str:
    """A grammar of turns that do nothing but call. rules: `Format.grammar`."""
    return f"start: calls\n{rules}"


def calls_or_answer(rules: str, answer: StructuredOutputs) -> str:
    """Of turns that call, or are what an answer must be. Raises `RequestError` for a grammar, whose rules may have our rules' names."""
    if isinstance(answer.json, str):
        said = value(json.loads(answer.json))
    elif answer.regex is not None:
        said = f"/{_slashed(answer.regex)}/"
    elif answer.choice is not None:
        said = " | ".join(map(quoted, answer.choice))
    else:
        raise RequestError("a grammar of the answer does not go with tools that may be called; send a regular expression or a JSON "
                           "schema, or tool_choice none")
    return f"start: calls | words\nwords: {said}\n{rules}"


def calls_or_words(family: Format, rules: str, tokenizer: Tokenizer, said: Sequence[str]) -> str | None:
    """Of turns that say what they like; a call, once it begins, is one of `rules`. said: marks that may stand among the words.

    None: the mark that begins calls is no token here, so that words and calls cannot be told apart as they are drawn.
    """
    if not family.opening:
        return f"start: calls | TEXT?\nTEXT: /(?s:.+)/ & ~/\\s*{re.escape(family.bracket)}(?s:.*)/\n{rules}"
    if tokenizer.added_id(family.opening) is None:
        return None
    marks = "".join(f" | {mark_of(tokenizer)(one)}" for one in said if tokenizer.added_id(one) is not None)
    text = f"TEXT: /(?s:.+)/ & ~/(?s:.*){_pattern(family.opening)}(?s:.*)/"
    return f"start: words* (calls words*)?\nwords: TEXT{marks}\n{text}\n{rules}"


def _pattern(text: str) -> str:
    """A regular expression of a grammar for just this text."""
    return _slashed(re.escape(text))


def _slashed(pattern: str) -> str:
    """As it stands between the slashes of a grammar."""
    return re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)


def quoted(text: str) -> str:
    """A string of a Lark grammar."""
    return json.dumps(text)


def named(name: str, key: str = "arguments") -> str:
    """A call's JSON up to its arguments, and a string of a grammar."""
    return quoted(f'{{"name": {json.dumps(name)}, "{key}": ')


def schema(parameters: Mapping[str, Any]) -> str:
    """The rule body for the JSON of a tool's arguments. Nothing is added that the schema does not name."""
    closed = {"additionalProperties": False} if "properties" in parameters else {}
    return value({"type": "object", **closed, **parameters})


def value(schema: Mapping[str, Any]) -> str:
    """The rule body for any JSON of a schema, one space at most between its parts."""
    return "%json " + json.dumps({**schema, "x-guidance": WHITESPACE})


def rules(offers: Sequence[Offer], call: Callable[[Offer, str], str]) -> str:
    """The rule `call`, one of the offers. call: an offer and the rule of its arguments -> a rule's body."""
    lines = ["call: " + " | ".join(f"call_{place}" for place in range(len(offers)))]
    for place, offer in enumerate(offers):
        lines += [f"call_{place}: {call(offer, f'arguments_{place}')}", f"arguments_{place}: {schema(offer.parameters)}"]
    return "\n".join(lines)
