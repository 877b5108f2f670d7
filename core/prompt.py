"""The forms in which a prompt may come: text, token ids, or a dict with either."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import RequestError, suggest
from .kv.salt import Salt

Prompt = str | Sequence[int] | Mapping[str, Any]


class ParsedPrompt(NamedTuple):
    """One prompt, and the salt that keeps its blocks apart."""

    content: str | Sequence[int]
    salt: Salt | None = None


KEYS = ("prompt", "prompt_token_ids", "cache_salt")


def parse_prompt(prompt: Prompt) -> ParsedPrompt:
    """`"text"`, `[1, 2, 3]`, `{"prompt": "text"}` or `{"prompt_token_ids": [1, 2, 3]}`, the dicts with an optional "cache_salt"."""
    if not isinstance(prompt, Mapping):
        return ParsedPrompt(_content(prompt))
    for key in prompt:
        if key not in KEYS:
            raise RequestError(f"a prompt has the key {key!r}. {suggest(str(key), KEYS)}")
    given = [key for key in KEYS[:2] if prompt.get(key) is not None]
    if len(given) != 1:
        raise RequestError(f"a prompt needs either 'prompt' or 'prompt_token_ids'; found {' and '.join(given) or 'neither'}")
    salt = prompt.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        raise RequestError(f"cache_salt must be a string; found {salt!r}")
    return ParsedPrompt(_content(prompt[given[0]]), Salt(tenant=salt) if salt else None)


def parse_prompts(prompts: Prompt | Sequence[Prompt]) -> list[ParsedPrompt]:
    """One prompt or several; a list of integers is one prompt of token ids."""
    if isinstance(prompts, str | Mapping) or _is_ids(prompts):
        return [parse_prompt(prompts)]  # type: ignore[arg-type]
    if not isinstance(prompts, Iterable):
        raise RequestError(f"prompts must be text, token ids, or a list of either; found {type(prompts).__name__}")
    return [parse_prompt(prompt) for prompt in prompts]  # type: ignore[arg-type]


def _is_ids(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], int | np.integer)


def _content(value: object) -> str | Sequence[int]:
    if isinstance(value, str) or _is_ids(value):
        return value  # type: ignore[return-value]
    raise RequestError(f"a prompt must be text or at least one token id; found {value!r:.80}")
