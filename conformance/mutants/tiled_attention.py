"""Attention as accelerators do it: online softmax over tiles of keys (Dao et al. 2022), with a name for each decision in it."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ops import Attention

Array = np.ndarray[Any, Any]


def page(array: Array, table: Array, seen: Array) -> Array:
    """[kv_heads, keys, dim] at positions `seen` of one row; past the table's end its last slot."""
    size = array.shape[-2]
    seen = np.minimum(seen, len(table) * size - 1)
    return array[table[seen // size], :, seen % size].transpose(1, 0, 2)


def positions(queries: int, length: int) -> Array:
    return np.arange(length - queries, length)


def span(spec: Attention, at: Array, length: int) -> tuple[int, int]:
    """The first key that any of the queries sees, and the end."""
    return 0 if spec.window is None else max(0, int(at[0]) - spec.window + 1), length


def visible(spec: Attention, at: Array, seen: Array) -> Array:
    """[queries, keys] from at [queries, 1] and seen [1, keys]."""
    return (seen <= at) & (spec.window is None or seen > at - (spec.window or 0))


def score(spec: Attention, raw: Array) -> Array:
    scaled = raw * np.float32(spec.scale)
    return scaled if spec.softcap is None else np.float32(spec.softcap) * np.tanh(scaled / np.float32(spec.softcap))


def kv_head(spec: Attention) -> Array:
    """[heads] the KV head of each head."""
    return np.arange(spec.heads.size) // (spec.heads.size // spec.kv_heads.size)


def hide(scores: Array, mask: Array) -> Array:
    return np.where(mask, scores, np.float32(-np.inf))


def same(array: Array) -> Array:
    return array


def scales(array: Array, load: Callable[[Array, Array, Array], Array], table: Array, seen: Array) -> Array:
    """[kv_heads, keys, 1] of the keys or values at positions `seen`."""
    return load(array, table, seen)


def tilt(spec: Attention, scores: Array, at: Array, seen: Array) -> Array:
    """ALiBi: scores [heads, queries, keys], at [queries, 1], seen [1, keys]."""
    return scores if spec.alibi is None else scores + np.asarray(spec.alibi, np.float32)[:, None, None] * (seen - at).astype(np.float32)


@dataclass(frozen=True)
class Way:
    """Each decision of the kernel; the defaults are right."""

    keys: int = 16
    """Keys in a tile."""
    row_table: Callable[[Array, int], Array] = lambda table, row: table[row]
    load: Callable[[Array, Array, Array], Array] = page
    load_values: Callable[[Array, Array, Array], Array] | None = None
    widened: Callable[[Array], Array] = lambda codes: codes.astype(np.float32)
    key_scales: Callable[..., Array] = scales
    value_scales: Callable[..., Array] = scales
    """(the cell's scales, load, table, seen) -> [kv_heads, keys, 1]."""
    decoded: Callable[[Array, Attention], Array] = lambda array, spec: array
    """Rounding of keys and values once they are multiplied by their scales."""
    latent_values: Callable[[Attention, Array], Array] = lambda spec, keys: keys[..., : spec.value_dim]
    positions: Callable[[int, int], Array] = positions
    span: Callable[[Attention, Array, int], tuple[int, int]] = span
    visible: Callable[[Attention, Array, Array], Array] = visible
    score: Callable[[Attention, Array], Array] = score
    tilt: Callable[[Attention, Array, Array, Array], Array] = tilt
    kv_head: Callable[[Attention], Array] = kv_head
    hide: Callable[[Array, Array], Array] = hide
    clean: bool = True
    """Values that no query sees are zeroed: 0 * NaN is NaN."""
    peak_of: Callable[[Array, Array], Array] = lambda scores, hidden: hidden.max(axis=-1)
    """(scores, the hidden ones) -> what the softmax subtracts."""
    guarded: bool = True
    """A tile with no visible key subtracts 0, not -inf."""
    exp: Callable[[Array], Array] = np.exp
    fix_total: Callable[[Array], Array] = same
    """The factor that carries the sum to a new maximum."""
    fix_mixed: Callable[[Array], Array] = same
    weights: Callable[[Array], Array] = same
    """Rounding of the softmax weights before they meet the values."""
    mixed: Callable[[Array], Array] = same
    """Rounding of the accumulator after each tile."""
    tiles: Callable[[int, int, int], Iterable[int]] = range
    """(first, stop, keys) -> the first key of each tile."""
    sink: Callable[[Attention, Array], Array] = lambda spec, sinks: sinks
    """[heads] from the weight [heads]."""
    sink_value: float = 0.0
    sink_count: Callable[[int], int] = lambda tiles: 1
    sink_in_peak: bool = True
    wide: Callable[[Array], Array] = lambda array: array.astype(np.float32)


def attend(way: Way, spec: Attention, q: Array, cell: Any, batch: Any, sinks: Sequence[Array] | None = None) -> Array:
    """`Attention`'s own arguments; float32 inside, rounded once."""
    rows, out = batch.groups[cell.group], np.zeros((*q.shape[:-1], spec.value_dim), np.float32)
    for row, length in enumerate(batch.lengths):
        start, stop = int(batch.starts[row]), int(batch.starts[row + 1])
        if start < stop:
            with np.errstate(all="ignore"):
                out[start:stop] = one_row(way, spec, q[start:stop], cell, way.row_table(rows.table, row), int(length), sinks)
    return out.astype(q.dtype)


def one_row(way: Way, spec: Attention, q: Array, cell: Any, table: Array, length: int, sinks: Sequence[Array] | None) -> Array:
    """[queries, heads, value_dim] in float32."""
    return finish(way, spec, *row_sums(way, spec, q, cell, table, length), sinks)


def row_sums(way: Way, spec: Attention, q: Array, cell: Any, table: Array, length: int) -> tuple[Array, Array, Array, int]:
    """(maximum, sum of the weights, weighted values [heads, queries, value_dim]) over the tiles, and how many there were."""
    at, heads = way.positions(len(q), length), way.kv_head(spec)
    first, stop = way.span(spec, at, length)
    turned = way.wide(q).transpose(1, 0, 2)
    peak = np.full(turned.shape[:2], -np.inf, np.float32)
    total, mixed = np.zeros_like(peak), np.zeros((*peak.shape, spec.value_dim), np.float32)
    tiles = list(way.tiles(first, stop, way.keys))
    for tile in tiles:
        seen = np.arange(tile, tile + way.keys)
        mask = way.visible(spec, at[:, None], seen[None, :])
        k, v = (part[heads] for part in keys_and_values(way, spec, cell, table, seen))
        v = np.where(np.asarray(mask.any(axis=0))[None, :, None], v, np.float32(0)) if way.clean else v
        scores = way.tilt(spec, way.score(spec, turned @ k.transpose(0, 2, 1)), at[:, None], seen[None, :])
        hidden = way.hide(scores, mask)
        above = np.maximum(peak, way.peak_of(scores, hidden))
        base = np.where(np.isinf(above), np.float32(0), above) if way.guarded else above
        weights, fix = way.exp(hidden - base[..., None]), way.exp(peak - base)
        total = total * way.fix_total(fix) + weights.sum(axis=-1)
        mixed = way.mixed(mixed * way.fix_mixed(fix)[..., None] + way.weights(weights) @ v)
        peak = above
    return peak, total, mixed, len(tiles)


def keys_and_values(way: Way, spec: Attention, cell: Any, table: Array, seen: Array) -> tuple[Array, Array]:
    """[kv_heads, keys, dim] each, in float32."""
    def loaded(name: str, load: Callable[[Array, Array, Array], Array], scale: Callable[..., Array]) -> Array:
        held = load(getattr(cell, name), table, seen)
        if spec.kv_dtype is None:
            return way.wide(held)
        return way.decoded(way.widened(held) * scale(getattr(cell, f"{name}_scale"), load, table, seen), spec)

    keys = loaded("k", way.load, way.key_scales)
    return keys, way.latent_values(spec, keys) if spec.latent else loaded("v", way.load_values or way.load, way.value_scales)


def finish(way: Way, spec: Attention, peak: Array, total: Array, mixed: Array, tiles: int, sinks: Sequence[Array] | None) -> Array:
    """The sink comes last, and the division."""
    if sinks is not None:
        sink = way.sink(spec, sinks[0].astype(np.float32))[:, None]
        base = np.maximum(peak, sink) if way.sink_in_peak else peak
        fix, weight = way.exp(peak - base), way.exp(sink - base) * way.sink_count(tiles)
        total, mixed = total * fix + weight, mixed * fix[..., None] + (weight * way.sink_value)[..., None]
    return (mixed / total[..., None]).transpose(1, 0, 2)


def attend_in_splits(way: Way, merge: Callable[[Array, Array], Array], spec: Attention, q: Array, cell: Any, batch: Any,
                     sinks: Sequence[Array] | None = None) -> Array:
    """Every other tile of keys by itself, then both halves put together. merge(peaks [2, ...], their maximum) -> factors [2, ...]."""
    rows, out = batch.groups[cell.group], np.zeros((*q.shape[:-1], spec.value_dim), np.float32)
    halves = [replace(way, tiles=lambda first, stop, keys: range(first, stop, 2 * keys)),
              replace(way, tiles=lambda first, stop, keys: range(first + keys, stop, 2 * keys))]
    for row, length in enumerate(batch.lengths):
        start, stop = int(batch.starts[row]), int(batch.starts[row + 1])
        if start < stop:
            with np.errstate(all="ignore"):
                parts = [row_sums(half, spec, q[start:stop], cell, rows.table[row], int(length)) for half in halves]
                peaks, totals, mixed = (np.stack([part[place] for part in parts]) for place in range(3))
                factors = merge(peaks, peaks.max(axis=0))
                whole = peaks.max(axis=0), (totals * factors).sum(axis=0), (mixed * factors[..., None]).sum(axis=0)
                out[start:stop] = finish(way, spec, *whole, 1, sinks)
    return out.astype(q.dtype)
