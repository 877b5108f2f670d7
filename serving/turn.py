"""What a turn must be, and how it is read: tools and their choice, a response format, thoughts."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.request import SamplingParams
from ..core.structured import StructuredOutputs
from .conversation import NO_PARAMETERS
from .errors import Refused
from .protocol.chat import Tool
from .service import Service
from .turns.format import Format, Offer, calls_only, calls_or_json, calls_or_words, mark_of
from .turns.reader import Reader, Thinking

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks around what a model thinks before it answers."""
TAIL_TOKENS = 8
"""Of a prompt: enough to hold a mark and the blanks behind it."""


@dataclass(frozen=True)
class Wanted:
    """What a request says of its turn, whichever API it came by.

    choice: none, auto, required, or function: the one called `function`. parallel: several calls may come at once.
    answer: the JSON schema of what it says where it calls nothing; None: anything.
    """

    tools: Sequence[Tool] = ()
    choice: str = "auto"
    function: str | None = None
    parallel: bool = True
    answer: Mapping[str, Any] | None = None

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that the model is told of."""
        return () if self.choice == "none" else self.tools


@dataclass(frozen=True)
class Turn:
    """structured: what the answer must follow. special: special tokens are part of its text. reader: None where all of it is words."""

    structured: StructuredOutputs | None = None
    special: bool = False
    reader: Callable[[], Reader] | None = None

    def sampling(self, params: SamplingParams) -> SamplingParams:
        return replace(params, structured_outputs=self.structured, skip_special_tokens=params.skip_special_tokens and not self.special)


def choice_of(given: object, name: object) -> tuple[str, str | None]:
    """`Wanted.choice` and `Wanted.function` of a request's tool_choice. name: what it names, where it is an object."""
    if isinstance(given, Mapping):
        return "function", name if given.get("type") == "function" and isinstance(name, str) else None
    return str(given or "auto"), None


def answer_of(kind: object, schema: object, param: str) -> Mapping[str, Any] | None:
    """`Wanted.answer` of a response format. param: where a client wrote it."""
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise Refused(400, f"{param} must be of type text, json_object, or json_schema with its schema", code="invalid_value", param=param)
    return schema


def turn_of(service: Service, wanted: Wanted, ids: Sequence[int]) -> Turn:
    """ids: the prompt. Raises `Refused` for a choice that no tool meets, and for tools that the model cannot be asked to call."""
    demanded = _demanded(wanted)
    if not wanted.offered:
        if wanted.answer is not None:
            return Turn(StructuredOutputs(json=wanted.answer))
        return Turn(reader=_reader(service, None, ids))
    family = service.tool_format
    if family is None:
        raise Refused(400, "this model's chat template says nothing of how it calls tools; start the server with --tool-format",
                      code="unsupported_value", param="tools")
    grammar = _grammar(service, family, wanted, demanded)
    structured = None if grammar is None else StructuredOutputs(grammar=grammar)
    thinks = demanded is None and wanted.answer is None
    return Turn(structured, family.special, _reader(service, family, ids) if thinks else family.reader)


def _grammar(service: Service, family: Format, wanted: Wanted, demanded: Sequence[Tool] | None) -> str | None:
    """None: what the model writes is only read. `strict`, of any function, holds the calls of them all."""
    if demanded is None and wanted.answer is None and not any(tool.function.strict for tool in wanted.offered):
        return None
    offers = [Offer(tool.function.name, tool.function.parameters or NO_PARAMETERS) for tool in demanded or wanted.offered]
    several = wanted.parallel and wanted.choice != "function"
    rules = family.grammar(offers, mark_of(service.tokenizer), several=several)
    if demanded is not None:
        return calls_only(rules)
    if wanted.answer is not None:
        return calls_or_json(rules, wanted.answer)
    return calls_or_words(family, rules, service.tokenizer, [mark for pair in THOUGHTS for mark in pair])


def _demanded(wanted: Wanted) -> Sequence[Tool] | None:
    """The tools of which one must be called; None: the model decides."""
    if wanted.choice in ("none", "auto"):
        return None
    if not wanted.tools:
        raise Refused(400, "tool_choice needs tools", code="invalid_value", param="tool_choice")
    if wanted.choice == "required":
        return wanted.tools
    found = [tool for tool in wanted.tools if tool.function.name == wanted.function]
    if not found:
        names = ", ".join(tool.function.name for tool in wanted.tools)
        raise Refused(400, f"tool_choice must be none, auto, required, or one of the functions {names[:400]}",
                      code="invalid_value", param="tool_choice")
    return found[:1]


def _reader(service: Service, family: Format | None, ids: Sequence[int]) -> Callable[[], Reader] | None:
    rest: type[Reader] | Callable[[], Reader] = family.reader if family else Reader
    marks = [pair for pair in THOUGHTS if any(pair[1] in text for text in service.templates)]
    if not marks:
        return rest if family else None
    tail = service.tokenizer.decode(ids[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    inside = next((end for begin, end in marks if tail.endswith(begin)), "")
    return lambda: Thinking(rest(), marks, inside)
