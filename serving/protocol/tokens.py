"""POST /tokenize and /detokenize: their forms."""
from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .base import Form, TokenId
from .chat import Message, Tool


class TokenizeForm(Form):
    """A plain text, or a conversation with what its template reads."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeForm(Form):
    model: str | None = None
    tokens: list[TokenId]
