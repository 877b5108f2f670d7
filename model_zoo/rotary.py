"""Rotary scaling: what config.json says about rope, reduced to frequencies and one factor, as transformers computes them."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, isfinite, log, pi
from typing import Any

import numpy as np

from ..errors import suggest
from .config import AGAIN, Fields

Frequencies = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Rotary:
    """Angles per position of each pair of dims, the factor on cos and sin, and the context that the scaling was made for."""

    frequencies: tuple[float, ...]
    factor: float
    context_tokens: int


@dataclass(frozen=True)
class Scaling:
    """What a scaling method is given: its own parameters, the base, the dims to turn, and the lengths."""

    fields: Fields
    key: str
    parameters: Mapping[str, Any]
    base: float
    dim: int
    context_tokens: int
    served_tokens: int

    def number(self, name: str, default: float | None = None, *, least: float = 0.0) -> float:
        value = self.parameters.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < least:
            rule = f"needs a number {name!r} of at least {least:g}"
            raise self.fields.error(self.key, rule, AGAIN)
        return value

    @property
    def original_tokens(self) -> int:
        """A length beside the scaling goes before the one within it (transformers does so for Phi-3's sake)."""
        if "original_max_position_embeddings" in self.fields:
            return self.fields.integer("original_max_position_embeddings")
        return int(self.number("original_max_position_embeddings", self.context_tokens, least=1))


def rotary(fields: Fields, head_dim: int, context_tokens: int, max_model_len: int | None) -> Rotary:
    """Both forms of config.json: `rope_scaling` beside `rope_theta`, and the `rope_parameters` of transformers 5."""
    key = "rope_scaling" if fields.table("rope_scaling") else "rope_parameters"
    parameters = fields.table(key)
    if head_dim % 2:
        raise fields.error("head_dim", "must be even: rotary embeddings turn pairs", AGAIN)
    name = parameters.get("rope_type", parameters.get("type")) or "default"
    if name not in METHODS:
        remedy = f"use a checkpoint with a known rope type. {suggest(str(name), METHODS).rstrip('.')}"
        raise fields.error(key, f"has the unknown rope type {name!r}", remedy)
    known = COMMON | METHODS[name].parameters
    if unknown := sorted(set(parameters) - known):
        remedy = f"remove it if the model was trained without. {suggest(str(unknown[0]), known).rstrip('.')}"
        raise fields.error(key, f"has the key {unknown[0]!r}, unknown to rope type {name!r}", remedy)
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise fields.error(key, "turns only part of a head", "use a checkpoint that turns whole heads")
    served = max_model_len or context_tokens
    scaling = Scaling(fields, key, parameters, fields.real("rope_theta", 10000.0), head_dim, context_tokens, served)
    if parameters.get("rope_theta") is not None:
        scaling = Scaling(fields, key, parameters, scaling.number("rope_theta", least=1e-9), head_dim, context_tokens, served)
    frequencies, factor, context = METHODS[name].scale(scaling)
    return Rotary(tuple(frequencies.astype(np.float32).tolist()), float(factor), context)


def _plain(base: float, dim: int) -> Frequencies:
    """1 / base^(2j / dim), in float32 as in training."""
    return np.float32(1.0) / _powers(base, dim)


def _powers(base: float, dim: int) -> Frequencies:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(np.power(np.float32(base), exponents))


Scaled = tuple[Frequencies, float, int]


def _default(r: Scaling) -> Scaled:
    return _plain(r.base, r.dim), 1.0, r.context_tokens


def _linear(r: Scaling) -> Scaled:
    """Positions divided by a factor (kaiokendev 2023)."""
    factor = r.number("factor", least=1e-9)
    return _plain(r.base, r.dim) / np.float32(factor), 1.0, max(r.context_tokens, int(r.context_tokens * factor))


def _dynamic(r: Scaling) -> Scaled:
    """A base that grows with the longest sequence served (bloc97, emozilla 2023); up to the original length it is the plain one.

    transformers rescales whenever a sequence grows, which contradicts the keys already cached; here it is fixed.
    """
    factor = r.number("factor", least=1.0)
    tokens = max(r.context_tokens, min(r.served_tokens, int(r.context_tokens * factor)))
    growth = factor * tokens / r.context_tokens - (factor - 1)
    base = r.base * growth ** (r.dim / (r.dim - 2)) if r.dim > 2 else r.base
    return _plain(base, r.dim), 1.0, tokens


def _llama3(r: Scaling) -> Scaled:
    """Long wavelengths divided by a factor, short ones kept, a smooth passage between (Llama 3.1)."""
    factor, original = np.float32(r.number("factor", least=1e-9)), r.original_tokens
    low, high = r.number("low_freq_factor", least=1e-9), r.number("high_freq_factor", least=1e-9)
    if high <= low:
        raise r.fields.error(r.key, "needs a high_freq_factor above its low_freq_factor", AGAIN)
    plain = _plain(r.base, r.dim)
    wavelength = np.float32(2 * pi) / plain
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    scaled = np.where(wavelength > original / low, plain / factor, np.where(wavelength < original / high, plain, between))
    return scaled, 1.0, r.context_tokens


def _yarn(r: Scaling) -> Scaled:
    """YaRN (Peng et al. 2023): interpolate the dims that turn less than `beta_slow` times, keep those above `beta_fast`."""
    original = r.original_tokens
    factor = r.number("factor", r.context_tokens / original, least=1e-9)
    fast, slow = (r.number("beta_fast", 32) or 32), (r.number("beta_slow", 1) or 1)

    def dim_of(turns: float) -> float:
        return r.dim * log(original / (turns * 2 * pi)) / (2 * log(r.base))

    low, high = dim_of(fast), dim_of(slow)
    if r.parameters.get("truncate", True):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, r.dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(r.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    powers, keep = _powers(r.base, r.dim), 1 - ramp
    scaled = 1 / (np.float32(factor) * powers) * (1 - keep) + 1 / powers * keep
    return scaled, _yarn_factor(r, factor), max(r.context_tokens, int(original * factor))


def _yarn_factor(r: Scaling, factor: float) -> float:
    if r.parameters.get("attention_factor") is not None:
        return r.number("attention_factor")

    def mscale(weight: float) -> float:
        return 0.1 * weight * log(factor) + 1.0 if factor > 1 else 1.0

    one, all_dim = r.number("mscale", 0.0), r.number("mscale_all_dim", 0.0)
    return mscale(one) / mscale(all_dim) if one and all_dim else mscale(1.0)


@dataclass(frozen=True)
class Method:
    """A way of scaling, and the parameters that it reads."""

    scale: Callable[[Scaling], Scaled]
    parameters: frozenset[str] = frozenset()


COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})
"""`finetuned` is a remark about the training, in checkpoints of 2023."""
ORIGINAL = "original_max_position_embeddings"
METHODS = {
    "default": Method(_default, frozenset({ORIGINAL})),
    "linear": Method(_linear, frozenset({"factor", ORIGINAL})),
    "dynamic": Method(_dynamic, frozenset({"factor", ORIGINAL})),
    "llama3": Method(_llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL})),
    "yarn": Method(_yarn, frozenset({
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", ORIGINAL,
    })),
}
