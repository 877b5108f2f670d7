"""From a form's settings to `SamplingParams`: what it says, over what the model recommends, within what the server allows."""
from __future__ import annotations

from collections.abc import Mapping

from ..core.request import SamplingParams
from .errors import Refused
from .protocol.base import Asked
from .service import Service

SAME = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "min_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
)
"""Settings that have one name in a form and in `SamplingParams`; not every form has them all."""


def sampling(
    service: Service, form: Asked, *, longest_prompt: int, max_tokens: int | None, default_tokens: int | None, logprobs: int | None,
) -> SamplingParams:
    """max_tokens: as asked. default_tokens: where nothing was asked; None: all that the context leaves.

    Raises `Refused` or `RequestError`.
    """
    given = {name: value for name in SAME if (value := getattr(form, name, None)) is not None}
    most, room = service.config.max_output_tokens, max(1, service.max_model_len - longest_prompt)
    if max_tokens is not None and most is not None and max_tokens > most:
        raise Refused(400, f"max_tokens is {max_tokens}; this server gives at most {most} tokens to an answer. Lower it.",
                      code="max_tokens_too_large", param="max_tokens")
    given["max_tokens"] = max_tokens or min(limit for limit in (room, most, default_tokens) if limit is not None)
    given["logit_bias"] = _biases(getattr(form, "logit_bias", None))
    return SamplingParams.from_kwargs(**{**service.engine.started.defaults, **given, "logprobs": logprobs})


def _biases(biases: Mapping[str, float] | None) -> dict[int, float] | None:
    """JSON's keys are text."""
    if not biases:
        return None
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 12):
            raise Refused(400, f"logit_bias maps token ids to biases; found the key {token[:80]!r}",
                          code="invalid_value", param="logit_bias")
    return {int(token): bias for token, bias in biases.items()}
