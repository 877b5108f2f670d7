"""POST /v1/completions: its form."""
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Generation, TokenId

MAX_PROMPTS = 2048
Ids = Annotated[list[TokenId], Field(min_length=1)]
Several = Annotated[list[str | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionForm(Generation):
    """What a client sends. A prompt is text or token ids; several are answered together, in their order."""

    prompt: str | Ids | Several
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str | list[int]]:
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[list-item, return-value]

    @property
    def sequences(self) -> int:
        return len(self.prompts) * (self.n or 1)
