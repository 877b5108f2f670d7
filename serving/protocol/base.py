"""What all forms share: strict JSON, and the settings of a draw by OpenAI's names with vLLM's beside them."""
from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from ...core.request import MAX_TOKEN_ID
from ..errors import Refused, refused_form

MAX_CHOICES = 128
"""Of one prompt, as OpenAI's."""
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 1024
MAX_CHOICE_TEXTS = 1024
"""Of which an answer must be one."""

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""OpenAI's limits."""
Temperature = Annotated[float, Field(ge=0, le=1000)]
"""Beyond it nothing changes but the rounding."""
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class Form(BaseModel):
    """A body. What it does not name is refused, as OpenAI does, and nothing is converted: "1" is no number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


F = TypeVar("F", bound=Form)


def parse(form: type[F], body: bytes) -> F:
    """Raises `Refused` for what is no JSON object, and for the first field that is wrong."""
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object", code="invalid_type")
    try:
        return form.model_validate(found)
    except ValidationError as error:
        raise refused_form(error) from None


class StreamOptions(Form):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Asked(Form):
    """A form that leads to tokens being drawn."""

    model: str | None = None

    @property
    def sequences(self) -> int:
        """Answers that it asks for: prompts times n."""
        return 1


class NamedSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: str | None = None
    definition: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """What the answer must be. Regular expressions (Rust's syntax) and grammars (Lark's) are beyond OpenAI's."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: NamedSchema | None = None
    regex: str | None = None
    grammar: str | None = None


class Structured(Form):
    """The same by vLLM's names: exactly one of them."""

    definition: dict[str, Any] | str | bool | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICE_TEXTS)] | None = None
    grammar: str | None = None


class Generation(Asked):
    """What chat and plain completions have in common. None: the model's own recommendation, then OpenAI's default."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-2**63, lt=2**64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    # Beyond OpenAI's, by vLLM's names.
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_BIASES)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    structured_outputs: Structured | None = None
    priority: Annotated[int, Field(ge=-2**31, lt=2**31)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    expect_return_seconds: Annotated[float, Field(ge=0)] | None = None
    """A hint that the conversation will go on after so long, for instance when a tool has answered."""

    # Known to OpenAI's clients, and without influence on the answer.
    user: str | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def sequences(self) -> int:
        return self.n or 1

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_each(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

