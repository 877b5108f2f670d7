"""What a turn must be, and how it is read: tools and their choice, a response format, thoughts."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.request import SamplingParams
from ..core.structured import StructuredOutputs
from .conversation import NO_PARAMETERS
from .errors import Refused
from .protocol.chat import ChatForm, ResponseFormat, Tool
from .service import Service
from .turns.format import Format, Offer, mark_of
from .turns.reader import Reader, Thinking

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks around what a model thinks before it answers."""
TAIL_TOKENS = 8
"""Of a prompt: enough to hold a mark and the blanks behind it."""


@dataclass(frozen=True)
class Turn:
    """structured: what the answer must follow. special: special tokens are part of its text. reader: None where all of it is words."""

    structured: StructuredOutputs | None = None
    special: bool = False
    reader: Callable[[], Reader] | None = None

    def sampling(self, params: SamplingParams) -> SamplingParams:
        return replace(params, structured_outputs=self.structured, skip_special_tokens=params.skip_special_tokens and not self.special)


def turn_of(service: Service, form: ChatForm, ids: Sequence[int]) -> Turn:
    """ids: the prompt. Raises `Refused` for a choice that no tool meets, and for what cannot be enforced together."""
    offered = [] if form.tool_choice in (None, "none") and not form.tools else form.tools or []
    chosen = _chosen(form.tool_choice, offered)
    words = _words(form.response_format)
    if form.tool_choice == "none" or not offered:
        return Turn(words, reader=_reader(service, None, ids) if words is None else None)
    if words is not None:
        raise Refused(400, "a response_format beside tools is not supported; set tool_choice to none, or leave the format out",
                      code="unsupported_value", param="response_format")
    family = service.tool_format
    if family is None:
        raise Refused(400, "this model's chat template says nothing of how it calls tools; start the server with --tool-format",
                      code="unsupported_value", param="tools")
    if chosen is None:
        return Turn(special=family.special, reader=_reader(service, family, ids))
    several = form.tool_choice == "required" and form.parallel_tool_calls is not False
    offers = [Offer(tool.function.name, tool.function.parameters or NO_PARAMETERS) for tool in chosen]
    grammar = family.grammar(offers, mark_of(service.tokenizer), several=several)
    return Turn(StructuredOutputs(grammar=grammar), family.special, family.reader)


def _chosen(choice: str | Mapping[str, Any] | None, offered: Sequence[Tool]) -> Sequence[Tool] | None:
    """The tools of which one must be called; None: the model decides."""
    if choice in (None, "none", "auto"):
        return None
    if not offered:
        raise Refused(400, "tool_choice needs tools", code="invalid_value", param="tool_choice")
    if choice == "required":
        return offered
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    found = [tool for tool in offered if tool.function.name == name]
    if not found:
        names = ", ".join(tool.function.name for tool in offered)
        raise Refused(400, f"tool_choice must be none, auto, required, or one of the functions {names[:400]}",
                      code="invalid_value", param="tool_choice")
    return found[:1]


def _words(given: ResponseFormat | None) -> StructuredOutputs | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return StructuredOutputs(json={"type": "object"})
    named = given.json_schema
    if named is None or named.definition is None:
        raise Refused(400, "a response_format of type json_schema needs json_schema with its schema",
                      code="invalid_value", param="response_format")
    return StructuredOutputs(json=named.definition)


def _reader(service: Service, family: Format | None, ids: Sequence[int]) -> Callable[[], Reader] | None:
    rest: type[Reader] | Callable[[], Reader] = family.reader if family else Reader
    marks = [pair for pair in THOUGHTS if any(pair[1] in text for text in service.templates)]
    if not marks:
        return rest if family else None
    tail = service.tokenizer.decode(ids[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    inside = next((end for begin, end in marks if tail.endswith(begin)), "")
    return lambda: Thinking(rest(), marks, inside)
