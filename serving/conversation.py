"""Messages as OpenAI writes them become turns as chat templates read them, and those become a prompt."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Refused
from .protocol.chat import Call, Message, Part, Tool
from .service import Service

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "name", "self", "_turns"})
"""Variables of a template that are not a client's to set."""
NO_PARAMETERS = {"type": "object", "properties": {}}


def prompt_ids(
    service: Service, messages: Sequence[Message], tools: Sequence[Tool] | None, *, add_generation_prompt: bool,
    variables: Mapping[str, Any] | None,
) -> list[int]:
    """Raises `Refused` or `RequestError` for what the template cannot take."""
    for name in variables or ():
        if name in RESERVED:
            raise Refused(400, f"chat_template_kwargs must not set {name!r}", code="invalid_value", param="chat_template_kwargs")
    knows_developer = any("developer" in text for text in service.templates)
    turns = [_turn(place, message, knows_developer) for place, message in enumerate(messages)]
    offered = [_tool(tool) for tool in tools or ()]
    return service.engine.started.chat_prompt(
        turns, offered or None, add_generation_prompt=add_generation_prompt, **(variables or {}))


def _tool(tool: Tool) -> dict[str, Any]:
    """Templates take parameters for granted; a function without any has an empty object of them."""
    made = tool.model_dump(exclude_none=True)
    made["function"] = {**made["function"], "parameters": tool.function.parameters or NO_PARAMETERS}
    return made


def _turn(place: int, message: Message, knows_developer: bool) -> dict[str, Any]:
    turn = message.model_dump(exclude_none=True)
    if message.role == "developer" and not knows_developer:
        turn["role"] = "system"
    turn["content"] = _text(f"messages[{place}].content", message.content)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _text(where: str, content: str | list[Part] | None) -> str:
    """Parts are joined by line breaks, as vLLM does."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in ("text", "refusal") or (part.type == "text" and part.text is None):
            raise Refused(400, f"{where} has a part of type {part.type[:40]!r}; this model takes parts of type text, with their text",
                          code="unsupported_content", param=where)
    return "\n".join(part.text for part in content if part.text is not None)


def _call(call: Call) -> dict[str, Any]:
    """Templates were made with arguments as an object; OpenAI's clients send its JSON as text."""
    made = call.model_dump(exclude_none=True)
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        return made
    if isinstance(arguments, dict):
        made["function"]["arguments"] = arguments
    return made
