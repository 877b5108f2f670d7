"""POST /v1/responses: its form."""
from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .base import Asked, Metadata, StreamOptions, Temperature


class Item(BaseModel):
    """A piece of the conversation. Clients send output back as it came, so that further fields are taken and ignored."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


class FunctionTool(BaseModel):
    """A function, flat as this API writes it."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextSettings(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesForm(Asked):
    """What a client sends; see OpenAI's reference for the names. Nothing is stored: each request brings its conversation."""

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextSettings | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    reasoning: dict[str, Any] | None = None

    # Beyond OpenAI's, by the names of chat completions.
    seed: Annotated[int, Field(ge=-2**63, lt=2**64)] | None = None
    priority: Annotated[int, Field(ge=-2**31, lt=2**31)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    expect_return_seconds: Annotated[float, Field(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Known to OpenAI's clients, and without influence on the answer.
    user: str | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
