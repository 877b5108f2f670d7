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
from .turns.format import Format, Offer, calls_only, calls_or_answer, calls_or_words, mark_of
from .turns.reader import Reader, Thinking

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks around what a model thinks before it answers."""
TAIL_TOKENS = 8
"""Of a prompt: enough to hold a mark and the blanks behind it."""


@dataclass(frozen=True)
class Wanted:
    """What a request says of its turn, whichever API it came by.

    choice: none, auto, required, or function: the one called `function`. allowed: only tools with these names; None: each.
    parallel: several calls may come at once. answer: what it must say where it calls nothing; None: anything.
    """

    tools: Sequence[Tool] = ()
    choice: str = "auto"
    function: str | None = None
    allowed: frozenset[str] | None = None
    parallel: bool = True
    answer: StructuredOutputs | None = None

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that the model is told of."""
        if self.choice == "none":
            return ()
        return [tool for tool in self.tools if self.allowed is None or tool.function.name in self.allowed]


@dataclass(frozen=True)
class Turn:
    """structured: what the answer must follow. special: special tokens are part of its text. reader: None where all of it is words."""

    structured: StructuredOutputs | None = None
    special: bool = False
    reader: Callable[[], Reader] | None = None

    def sampling(self, params: SamplingParams) -> SamplingParams:
        return replace(params, structured_outputs=self.structured, skip_special_tokens=params.skip_special_tokens and not self.special)


def choice_of(given: str | Mapping[str, Any] | None, named: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
    """What `Wanted` has of a request's tool_choice. named: the function that an object of the API's names."""
    if not isinstance(given, Mapping):
        return {"choice": given or "auto"}
    if given.get("type") == "allowed_tools":
        return _allowed(given.get("allowed_tools", given), named)
    name = named(given) if given.get("type") == "function" else None
    return {"choice": "function", "function": name if isinstance(name, str) else None}


def _allowed(given: object, named: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
    """Chat completions have mode and tools within an object of their own, responses beside the type."""
    mode = given.get("mode", "auto") if isinstance(given, Mapping) else None
    tools = given.get("tools") if isinstance(given, Mapping) else None
    names = [named(one) for one in tools if isinstance(one, Mapping)] if isinstance(tools, list) else []
    if mode not in ("auto", "required") or not names or not all(isinstance(name, str) for name in names):
        raise Refused(400, "tool_choice of type allowed_tools needs mode auto or required, and tools with the names of functions",
                      code="invalid_value", param="tool_choice")
    return {"choice": mode, "allowed": frozenset(names)}


def turn_of(service: Service, wanted: Wanted, ids: Sequence[int]) -> Turn:
    """ids: the prompt. Raises `Refused` for a choice that no tool meets, and for tools that the model cannot be asked to call."""
    demanded = _demanded(wanted)
    if not wanted.offered:
        if wanted.answer is not None:
            return Turn(wanted.answer)
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
    """None: what the model writes is only read. `strict`, of any function, holds the calls of them all, and so do allowed tools."""
    held = wanted.allowed is not None or any(tool.function.strict for tool in wanted.offered)
    if demanded is None and wanted.answer is None and not held:
        return None
    offers = [Offer(tool.function.name, tool.function.parameters or NO_PARAMETERS) for tool in demanded or wanted.offered]
    several = wanted.parallel and wanted.choice != "function"
    rules = family.grammar(offers, mark_of(service.tokenizer), several=several)
    if demanded is not None:
        return calls_only(rules)
    if wanted.answer is not None:
        return calls_or_answer(rules, wanted.answer)
    return calls_or_words(family, rules, service.tokenizer, [mark for pair in THOUGHTS for mark in pair])


def _demanded(wanted: Wanted) -> Sequence[Tool] | None:
    """The tools of which one must be called; None: the model decides."""
    unknown = (wanted.allowed or frozenset()) - {tool.function.name for tool in wanted.tools}
    if unknown:
        raise Refused(400, f"tool_choice allows {min(unknown)[:80]!r}, which is none of the tools", code="invalid_value",
                      param="tool_choice")
    if wanted.choice in ("none", "auto"):
        return None
    if not wanted.tools:
        raise Refused(400, "tool_choice needs tools", code="invalid_value", param="tool_choice")
    if wanted.choice == "required":
        return wanted.offered
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
