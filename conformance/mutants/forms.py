"""Planted bugs of attention's other forms: keys and values as codes, latent keys, ALiBi."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ops import Attention
from .attention import OURS, way
from .plant import Run, Variant, stateful
from .tiled_attention import Array, Way, attend, kv_head, page, scales, score, tilt

Load = Callable[[Array, Array, Array], Array]


# Codes and their scales.

def _of_the_next_token(array: Array, load: Load, table: Array, seen: Array) -> Array:
    return scales(array, load, table, seen + 1)


def _of_the_block(array: Array, load: Load, table: Array, seen: Array) -> Array:
    """One scale for a block: its first token's."""
    size = array.shape[-2]
    return scales(array, load, table, seen // size * size)


def _of_the_first_head(array: Array, load: Load, table: Array, seen: Array) -> Array:
    return scales(array, load, table, seen)[:1].repeat(array.shape[1], axis=0)


def _of_heads_in_turn(array: Array, load: Load, table: Array, seen: Array) -> Array:
    """The offset of a scale is computed as [blocks, block_tokens, kv_heads]."""
    _, heads, size, _ = array.shape
    place = np.minimum(seen, len(table) * size - 1)
    offsets = table[place // size] * heads * size + place % size * heads
    return array.reshape(-1)[offsets[None, :] + np.arange(heads)[:, None]][..., None]


def _of_the_physical_order(array: Array, load: Load, table: Array, seen: Array) -> Array:
    """The scales are taken to lie in the order of the tokens, without a table."""
    return page(array, np.minimum(table[:1] + np.arange(len(table)), len(array) - 1), seen)


def _only(which: str) -> Callable[..., Array]:
    return lambda array, *rest: np.ones_like(scales(array, *rest)) if which == "none" else scales(array, *rest)


def _unsigned(codes: Array) -> Array:
    return (codes.view(np.uint8) if codes.dtype == np.int8 else codes).astype(np.float32)


def _e5m2(codes: Array) -> Array:
    """The other format of 8 bits: its codes are the high half of a float16."""
    if codes.dtype == np.int8:
        return codes.astype(np.float32)
    return (np.ascontiguousarray(codes).view(np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def _stale() -> Run:
    """The scales of the first call of a shape are kept for the next ones."""
    kept: dict[Any, tuple[Array, Array]] = {}

    def run(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
        if spec.kv_dtype is None or spec.latent:
            return attend(Way(), spec, q, cell, batch, *rest)
        keys, values = kept.setdefault((spec, cell.k_scale.shape), (cell.k_scale.copy(), cell.v_scale.copy()))
        return attend(Way(key_scales=lambda array, *at: scales(keys, *at), value_scales=lambda array, *at: scales(values, *at)),
                      spec, q, cell, batch, *rest)

    return run


CODES = [
    way("scale_of_the_next_token", OURS, key_scales=_of_the_next_token),
    way("scale_of_the_block", OURS, value_scales=_of_the_block),
    way("scale_of_the_first_head", OURS, key_scales=_of_the_first_head, value_scales=_of_the_first_head),
    way("scales_with_heads_and_tokens_swapped", OURS, key_scales=_of_heads_in_turn),
    way("scales_without_the_table", OURS, value_scales=_of_the_physical_order),
    way("scale_not_applied_to_keys", OURS, key_scales=_only("none")),
    way("scale_not_applied_to_values", OURS, value_scales=_only("none")),
    way("scale_squared", OURS, value_scales=lambda *at: scales(*at) ** 2),
    way("codes_without_a_sign", OURS, widened=_unsigned),
    way("codes_of_the_other_float8", OURS, widened=_e5m2),
    stateful("stale_scales", "attention", OURS, _stale),
]


# ALiBi.

def _tilted(by: Callable[[Attention, Array, Array], Array]) -> Callable[[Attention, Array, Array, Array], Array]:
    """by: (spec, at, seen) -> what is added, [heads, queries, keys]."""
    return lambda spec, scores, at, seen: scores if spec.alibi is None else scores + by(spec, at, seen).astype(np.float32)


def _slopes(spec: Attention) -> Array:
    return np.asarray(spec.alibi, np.float32)[:, None, None]


def _power_of_two(spec: Attention, at: Array, seen: Array) -> Array:
    """The slopes are computed, and as if the heads were a power of two."""
    heads = 2 ** (spec.heads.size - 1).bit_length()
    return 2.0 ** (-8 * np.arange(1, spec.heads.size + 1) / heads)[:, None, None] * (seen - at)


def _before_the_cap(spec: Attention, scores: Array, at: Array, seen: Array) -> Array:
    """What the cap took away is put back, the slope added, and the cap put on again."""
    if spec.alibi is None or spec.softcap is None:
        return tilt(spec, scores, at, seen)
    cap = np.float32(spec.softcap)
    return cap * np.tanh(tilt(spec, cap * np.arctanh(np.clip(scores / cap, -0.999999, 0.999999)), at, seen) / cap)


def _from_the_window(spec: Attention, at: Array, seen: Array) -> Array:
    """Distances are counted from the first key that the window lets in."""
    return _slopes(spec) * (seen - np.maximum(at - (spec.window or 0) + 1, 0)) if spec.window else _slopes(spec) * (seen - at)


ALIBI = [
    way("alibi_ignored", OURS, tilt=lambda spec, scores, at, seen: scores),
    way("alibi_with_the_other_sign", OURS, tilt=_tilted(lambda spec, at, seen: _slopes(spec) * (at - seen))),
    way("alibi_from_the_start_of_the_row", "harmless without a sink", tilt=_tilted(lambda spec, at, seen: _slopes(spec) * (seen - 0 * at))),
    way("alibi_from_the_start_of_the_window", "harmless without a sink", tilt=_tilted(_from_the_window)),
    way("alibi_slopes_reversed", OURS, tilt=_tilted(lambda spec, at, seen: _slopes(spec)[::-1] * (seen - at))),
    way("alibi_slope_of_the_kv_head", OURS, tilt=_tilted(lambda spec, at, seen: _slopes(spec)[kv_head(spec)] * (seen - at))),
    way("alibi_slopes_for_a_power_of_two", OURS, tilt=_tilted(_power_of_two)),
    way("alibi_scaled_as_scores_are", OURS, tilt=_tilted(lambda spec, at, seen: _slopes(spec) * np.float32(spec.scale) * (seen - at))),
    way("alibi_before_the_cap", OURS, tilt=_before_the_cap),
    way("alibi_one_key_off", "harmless without a sink", tilt=_tilted(lambda spec, at, seen: _slopes(spec) * (seen - at - 1))),
    way("alibi_of_the_last_query", "harmless without a sink", tilt=_tilted(lambda spec, at, seen: _slopes(spec) * (seen - at[-1:]))),
]


# Latent keys.

def _shifted(spec: Attention, keys: Array) -> Array:
    """The values begin one entry late; the last of them is 0 where the keys end."""
    return np.pad(keys, ((0, 0), (0, 0), (0, 1)))[..., 1 : spec.value_dim + 1]


def _one_short(spec: Attention, keys: Array) -> Array:
    values = keys[..., : spec.value_dim].copy()
    values[..., -1] = 0
    return values


def _first_part_scored(spec: Attention, raw: Array) -> Array:
    return score(spec, raw) * np.float32((spec.key_dim / spec.value_dim) ** 0.5) if spec.latent else score(spec, raw)


LATENT = [
    way("latent_values_from_the_tail", OURS, latent_values=lambda spec, keys: keys[..., spec.key_dim - spec.value_dim :]),
    way("latent_values_one_entry_late", OURS, latent_values=_shifted),
    way("latent_value_dim_one_short", OURS, latent_values=_one_short),
    way("latent_scale_of_the_value_dim", "a scale of value_dim^-0.5", score=_first_part_scored),
]

BUGS: Sequence[Variant] = (*CODES, *ALIBI, *LATENT)
