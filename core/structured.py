"""Structured outputs: an answer that must be JSON of a schema, match a regular expression, or follow a grammar, by llguidance."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..errors import RequestError
from ..ops.sample import mask_words
from .tokenizer import Tokenizer

Array = np.ndarray[Any, np.dtype[np.int32]]
KEPT_GRAMMARS = 64
WHITESPACE = r" |\n[ \t]{0,24}"
"""Between the parts of JSON: a space, or a new line and its indent; no runs of blanks, which small models do not end."""


@dataclass(frozen=True)
class StructuredOutputs:
    """What an answer must be, exactly one of these; names are vLLM's.

    json: a JSON schema, as a mapping or its text; {}, as True, is any JSON. regex: Rust's syntax, for the whole answer.
    choice: one of these strings. grammar: in Lark's syntax, from `start` on.
    Raises RequestError for what cannot be meant.
    """

    json: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            raise RequestError(f"structured outputs need one of json, regex, choice and grammar; found {' and '.join(given) or 'none'}")
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("regex", "grammar"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text):
                raise RequestError(f"{name} must be a string of at least one character; found {text!r}")


def _schema(given: object) -> str:
    """A JSON schema as text that reads back."""
    try:
        parsed = json.loads(given) if isinstance(given, str) else given
        if isinstance(parsed, Mapping) or parsed is True:
            return json.dumps({} if parsed is True else parsed, allow_nan=False)
        found = "false, which allows no answer" if parsed is False else type(parsed).__name__
    except (ValueError, TypeError, RecursionError) as error:
        found = str(error)
    raise RequestError(f"json must be a JSON schema, an object or its text; found {found}. Pass for instance {{\"type\": \"object\"}}.")


def _choices(given: object) -> tuple[str, ...]:
    choices = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if not choices or not all(isinstance(one, str) and one for one in choices):
        raise RequestError(f"choice must be a list of strings, at least one; found {given!r}")
    return choices


class Guide:
    """One answer's place in its grammar. A token that the grammar forbids, and a grammar that grows too costly, set `error`."""

    def __init__(self, matcher: Any, words: int, ends: Array) -> None:
        self._matcher, self._words, self._ends = matcher, words, ends
        self._taken = 0
        self.error = ""

    def copy(self) -> Guide:
        """At the grammar's start."""
        return Guide(self._matcher.deep_copy(), self._words, self._ends)

    def mask(self, drawn: Sequence[int]) -> Array:
        """[words] int32: a bit for each token that may follow those drawn so far, of which this is told more each time.

        At the end of the grammar, and after an error, only what ends the answer.
        """
        for token in drawn[self._taken :]:
            self._matcher.consume_token(token)
        self._taken = len(drawn)
        bits = np.frombuffer(self._matcher.compute_bitmask(), "<i4")[: self._words]
        if self._matcher.is_error():
            self.error = f"the grammar could not be followed: {_first_line(self._matcher.get_error())}. Simplify it."
            return self._ends
        return bits


class Grammars:
    """Compiles what requests ask for, for one tokenizer, and keeps the last ones."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_tokens: Sequence[int]) -> None:
        """vocab: the model's, which may be padded beyond the tokenizer's. end_tokens: those that end an answer."""
        self._tokenizer, self._vocab, self._end_tokens = tokenizer, vocab, sorted(end_tokens)
        self._compiled = lru_cache(maxsize=KEPT_GRAMMARS)(self._compile)

    def guide(self, asked: StructuredOutputs) -> Guide:
        """Raises RequestError for a grammar that cannot be read or is too large, and where llguidance is not installed."""
        return self._compiled(asked).copy()

    def _compile(self, asked: StructuredOutputs) -> Guide:
        library, tokens = self._library, self._tokens
        try:
            matcher = library.LLMatcher(tokens, _grammar(library.LLMatcher, asked), log_level=0)
        except ValueError as error:
            raise RequestError(f"the grammar cannot be used: {_first_line(str(error))}") from None
        if matcher.is_error():
            raise RequestError(f"the grammar cannot be used: {_first_line(matcher.get_error())}")
        ends = np.zeros(mask_words(self._vocab), np.int32)
        for token in self._end_tokens:
            ends[token // 32] |= np.array(1 << token % 32, np.uint32).astype(np.int32)
        return Guide(matcher, len(ends), ends)

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError:
            raise RequestError("structured outputs need llguidance; pip install 'inferplane[serve]'") from None
        return llguidance

    @cached_property
    def _tokens(self) -> Any:
        if not self._end_tokens:
            raise RequestError("structured outputs need a token that ends an answer, and this model names none")
        return self._library.LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab, eos_token=self._end_tokens)


def _grammar(matcher: Any, asked: StructuredOutputs) -> str:
    if asked.json is not None:
        return matcher.grammar_from_json_schema(asked.json, overrides={"whitespace_pattern": WHITESPACE})
    if asked.regex is not None:
        return matcher.grammar_from_regex(asked.regex)
    if asked.choice is not None:
        return matcher.grammar_from_lark("start: " + " | ".join(json.dumps(one) for one in asked.choice))
    return matcher.grammar_from_lark(asked.grammar)


def _first_line(text: str) -> str:
    return (text or "unknown error").strip().split("\n")[0].removesuffix("<state>").strip()[:300]
