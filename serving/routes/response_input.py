"""The input items of /v1/responses as the messages of a conversation."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import Refused
from ..protocol.chat import Call, Function, FunctionTool, Message, Part, Tool
from ..protocol.responses import Item, ResponsesForm

PARTS = ("input_text", "output_text", "text", "refusal")


def messages(form: ResponsesForm) -> list[Message]:
    """Thoughts, words and calls that follow each other are one turn of the assistant. Raises `Refused`."""
    opening = [Message(role="system", content=form.instructions)] if form.instructions else []
    if isinstance(form.input, str):
        return [*opening, Message(role="user", content=form.input)]
    found: list[Message] = []
    for place, item in enumerate(form.input):
        made = _message(f"input[{place}]", item)
        if made.role == "assistant" and found and found[-1].role == "assistant" and not _ends(found[-1], made):
            made = _joined(found.pop(), made)
        found.append(made)
    return [*opening, *found]


def tools(form: ResponsesForm) -> list[Tool]:
    """As chat completions write them."""
    return [
        Tool(type="function", function=FunctionTool.model_validate(tool.model_dump(exclude={"type"}, exclude_none=True)))
        for tool in form.tools or ()
    ]


def _message(where: str, item: Item) -> Message:
    if item.type == "function_call" and item.name is not None and item.arguments is not None:
        call = Call(id=item.call_id, function=Function(name=item.name, arguments=item.arguments))
        return Message(role="assistant", tool_calls=[call])
    if item.type == "function_call_output" and item.call_id is not None and item.output is not None:
        return Message.model_validate({"role": "tool", "tool_call_id": item.call_id, "content": _content(f"{where}.output", item.output)})
    if item.type == "reasoning":
        return _thoughts(item)
    if item.type != "message" or item.role is None:
        raise Refused(400, f"{where} of type {item.type[:40]!r} cannot be used; taken are messages with a role, reasoning, function_call "
                      "with name and arguments, and function_call_output with call_id and output", code="unsupported_value", param=where)
    return Message(role=item.role, content=_content(f"{where}.content", item.content))


def _thoughts(item: Item) -> Message:
    """By vLLM's name, which chat templates read."""
    parts = item.content if isinstance(item.content, list) else []
    text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return Message.model_validate({"role": "assistant", **({"reasoning_content": text} if text else {})})


def _content(where: str, content: str | list[dict[str, Any]] | None) -> str | list[Part] | None:
    return content if content is None or isinstance(content, str) else [_part(where, part) for part in content]


def _part(where: str, part: Mapping[str, Any]) -> Part:
    text = part.get("text", part.get("refusal"))
    if part.get("type") not in PARTS or not isinstance(text, str):
        raise Refused(400, f"{where} must have parts of type input_text or output_text, with their text",
                      code="unsupported_content", param=where)
    return Part(type="text", text=text)


def _ends(before: Message, after: Message) -> bool:
    """Whether the earlier turn was whole: nothing but calls follows words, and thoughts begin a turn."""
    said: Sequence[Any] = (before.content, before.tool_calls)
    return any(said) and (after.content is not None or not after.tool_calls)


def _joined(before: Message, after: Message) -> Message:
    calls = [*(before.tool_calls or ()), *(after.tool_calls or ())]
    return Message.model_validate({
        **before.model_dump(exclude_none=True), **after.model_dump(exclude_none=True),
        **({"tool_calls": [call.model_dump(exclude_none=True) for call in calls]} if calls else {}),
    })
