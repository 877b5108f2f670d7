"""POST /v1/chat/completions: its form."""
from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .base import Generation


class Part(BaseModel):
    """A piece of a message's content. Only text is understood; other kinds are refused where they are read."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: str
    text: str | None = None


class Function(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class Call(BaseModel):
    """A call that the model made earlier in the conversation."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    id: str | None = None
    type: str = "function"
    function: Function


class Message(BaseModel):
    """One turn. Clients send answers back as they came, so that further fields go to the chat template."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None


class FunctionTool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["function"]
    function: FunctionTool


class ChatForm(Generation):
    """What a client sends; see OpenAI's reference for the names."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None

    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
