"""Planted bugs of attention over paged KV."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import Attention, Kernel
from .plant import FAMILIES, MutantPlatform, Run, Variant, kernel, stateful
from .tiled_attention import Array, Way, attend, attend_in_splits, kv_head, page, score, span

OURS = "our own"
RIGHT = Way()


def way(name: str, source: str, **wrong: Any) -> Variant:
    """The tiled kernel with some decisions made wrong."""
    return kernel(name, "attention", source, partial(attend, replace(RIGHT, **wrong)))


def call(name: str, source: str, run: Run, **fields: Any) -> Variant:
    """The tiled kernel, called wrongly."""
    return kernel(name, "attention", source, run, **fields)


def changed(**fields: Callable[[Attention], Any]) -> Run:
    """The right kernel for another spec."""
    return lambda spec, *arrays: attend(RIGHT, replace(spec, **{name: value(spec) for name, value in fields.items()}), *arrays)


# Where the keys lie.

def _flat(stride: Callable[[Array], tuple[int, int, int]], wrap: int = 2**62) -> Callable[[Array, Array, Array], Array]:
    """Loads by a computed element offset. stride: (of a block, a head, a token); wrap: offsets are taken modulo it."""
    def load(array: Array, table: Array, seen: Array) -> Array:
        _, heads, size, dim = array.shape
        block, head, token = stride(array)
        place = np.minimum(seen, len(table) * size - 1)
        start = table[place // size] * block + place % size * token
        offsets = start[None, :, None] + np.arange(heads)[:, None, None] * head + np.arange(dim)
        return array.reshape(-1)[offsets % wrap % array.size]

    return load


def _strides(array: Array) -> tuple[int, int, int]:
    _, heads, size, dim = array.shape
    return heads * size * dim, size * dim, dim


def _key_stride(spec: Attention, q: Array, cell: Any, *rest: Any) -> Array:
    """V is addressed with K's block stride."""
    load = _flat(lambda array: (_strides(cell.k)[0], *_strides(array)[1:]))
    return attend(replace(RIGHT, load_values=load), spec, q, cell, *rest)


def _near(array: Array, table: Array, seen: Array) -> Array:
    return page(array, table % 256, seen)


def _half_table(array: Array, table: Array, seen: Array) -> Array:
    """The row's blocks are read two at a time, and an odd last one twice."""
    size = array.shape[-2]
    last = (seen.max(initial=0) // size) & ~1
    return page(array, table, np.where(seen // size > last, seen - size, seen))


PAGES = [
    way("table_taken_as_ascending", "flashinfer #3219", load=lambda a, t, s: page(a, np.minimum(t[:1] + np.arange(len(t)), len(a) - 1), s)),
    way("heads_and_tokens_swapped_in_strides", "aiter #3498",
        load=_flat(lambda a: (_strides(a)[0], a.shape[-1], a.shape[1] * a.shape[-1]))),
    call("values_with_the_stride_of_keys", "aiter #3498", _key_stride),
    way("offsets_in_too_few_bits", "vLLM #47671, emulated with 16 bits", load=_flat(_strides, 2**16)),
    replace(way("offsets_in_32_bits", "vLLM #47671, aiter #4427, SageAttention #386", load=_flat(_strides, 2**32)), families=("kv.far",)),
    replace(way("signed_offsets_in_32_bits", "aiter #4427", load=_flat(_strides, 2**31)), families=("kv.far",)),
    way("signed_offsets_overflow", "aiter #4427, emulated with 15 bits and a sign",
        load=lambda a, t, s: page(a, np.where(t * _strides(a)[0] >= 2**15, 0, t), s)),
    replace(way("block_ids_in_8_bits", OURS, load=_near), families=("attention.decode",)),
    way("odd_last_block_skipped", OURS, load=_half_table),
    way("table_of_the_first_row", OURS, row_table=lambda table, row: table[0]),
    way("table_of_the_row_before", OURS, row_table=lambda table, row: table[row - 1]),
    way("blocks_of_16_hard_coded", OURS,
        load=lambda a, t, s: a[t[np.minimum(s // 16, len(t) - 1)], :, s % 16 % a.shape[-2]].transpose(1, 0, 2)),
]


# Which keys are seen.

def _window(low: int = 0, high: int = 0) -> Callable[[Attention, Array, Array], Array]:
    def visible(spec: Attention, at: Array, seen: Array) -> Array:
        return (seen <= at + high) & (spec.window is None or seen > at - (spec.window or 0) + low)

    return visible


def _wider_span(spec: Attention, at: Array, length: int) -> tuple[int, int]:
    first, stop = span(spec, at, length)
    return max(0, first - 1), stop


def _one_window(spec: Attention, at: Array, seen: Array) -> Array:
    return (seen <= at) & (spec.window is None or seen > at[-1:] - (spec.window or 0))


def _no_window(when: Callable[[Array], bool]) -> Callable[[Attention, Array, Array], Array]:
    def visible(spec: Attention, at: Array, seen: Array) -> Array:
        return _window()(replace(spec, window=None) if when(at) else spec, at, seen)

    return visible


def _all_span(spec: Attention, at: Array, length: int) -> tuple[int, int]:
    return 0, length


def _both_ways(spec: Attention, at: Array, seen: Array) -> Array:
    return _window()(spec, at, np.minimum(seen, at)) & (seen <= at[-1:]) if len(at) <= 8 else _window()(spec, at, seen)


MASKS = [
    way("window_one_too_wide", "vLLM #3385", visible=_window(low=-1), span=_wider_span),
    way("window_one_too_narrow", "transformers #29623", visible=lambda spec, at, seen: _window(low=1)(spec, at, seen) | (seen == at)),
    way("window_ignored_in_decode", "mlx-lm #390", visible=_no_window(lambda at: len(at) == 1), span=_all_span),
    way("window_ignored_in_prefill", "transformers #39408", visible=_no_window(lambda at: len(at) > 1), span=_all_span),
    way("window_of_the_last_query_for_all", OURS, visible=lambda spec, at, seen: _one_window(spec, at, seen) | (seen == at)),
    way("window_in_whole_tiles", OURS, span=_all_span,
        visible=lambda spec, at, seen: (seen <= at) & (spec.window is None or seen // 16 >= (at - (spec.window or 0) + 1) // 16)),
    way("future_key_seen", OURS, visible=_window(high=1)),
    way("own_key_not_seen", OURS, visible=lambda spec, at, seen: _window()(spec, at, seen) & ((seen < at) | (at == 0))),
    way("not_causal_within_a_tile", OURS, visible=lambda spec, at, seen: _window()(spec, at // 16 * 16 + 15, seen)),
    way("not_causal_in_short_prefill", OURS, visible=_both_ways),
    way("cached_prefix_forgotten", "tenstorrent/vllm #415", positions=lambda queries, length: np.arange(queries)),
    way("prefix_seen_one_short", OURS,
        positions=lambda queries, length: np.arange(length - queries, length) - int(queries > 1 and length > queries)),
    way("last_tile_dropped", OURS, tiles=lambda first, stop, keys: range(first, max(first + 1, stop // keys * keys), keys)),
    way("first_tile_of_long_rows_dropped", OURS, tiles=lambda first, stop, keys: range(first + 16 * (stop - first > 64), stop, keys)),
]


# The softmax.

def _bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def _tf32(array: Array) -> Array:
    """Ten bits of mantissa."""
    return (np.ascontiguousarray(array.astype(np.float32)).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _capped_after_masking(spec: Attention, raw: Array) -> Array:
    return raw * np.float32(spec.scale)


def _late_cap(spec: Attention, *arrays: Any) -> Array:
    """The cap turns -inf into -softcap, which the softmax sees."""
    if spec.softcap is None:
        return attend(RIGHT, spec, *arrays)
    cap = np.float32(spec.softcap)
    wrong = replace(RIGHT, score=_capped_after_masking, hide=lambda s, mask: cap * np.tanh(np.where(mask, s, -np.inf) / cap))
    return attend(wrong, spec, *arrays)


def _cap_before_scale(spec: Attention, raw: Array) -> Array:
    return raw * np.float32(spec.scale) if spec.softcap is None else score(replace(spec, scale=1.0), raw) * np.float32(spec.scale)


def _loose_peak(scores: Array, hidden: Array) -> Array:
    """Over all of the tile, seen or not; NaN set aside."""
    return np.where(np.isfinite(scores), scores, -np.inf).max(axis=-1)


SOFTMAX = [
    way("nan_in_unused_slots", "flash-attention #1745", clean=False),
    way("garbage_moves_the_maximum", "vLLM #53856", peak_of=_loose_peak),
    way("mask_added_instead_of_chosen", OURS, hide=lambda scores, mask: scores + np.where(mask, 0, np.float32(-1e30))),
    way("masked_tile_gives_nan", OURS, span=_all_span, guarded=False),
    way("sum_not_rescaled", OURS, fix_total=np.ones_like),
    way("output_not_rescaled", OURS, fix_mixed=np.ones_like),
    way("masked_score_is_zero", OURS, hide=lambda scores, mask: np.where(mask, scores, np.float32(0))),
    way("accumulator_in_bfloat16", OURS, mixed=_bf16),
    way("weights_in_bfloat16", OURS, weights=_bf16),
    way("tf32_not_asked_for", OURS, wide=_tf32),
    way("softcap_ignored", OURS, score=lambda spec, raw: raw * np.float32(spec.scale)),
    way("softcap_before_scale", OURS, score=_cap_before_scale),
    call("softcap_after_masking", OURS, _late_cap),
    call("scale_twice", OURS, changed(scale=lambda spec: spec.scale**2)),
    call("scale_assumed", OURS, changed(scale=lambda spec: spec.key_dim**-0.5)),
    call("splits_not_weighted", OURS, partial(attend_in_splits, RIGHT, lambda peaks, peak: np.isfinite(peaks).astype(np.float32))),
    way("sinks_ignored", OURS, sink=lambda spec, sinks: np.full_like(sinks, -np.inf)),
    way("sink_with_a_value", OURS, sink_value=1.0),
    way("sink_in_every_tile", OURS, sink_count=lambda tiles: tiles),
    way("sink_of_the_kv_head", OURS, sink=lambda spec, sinks: sinks[kv_head(spec)]),
]


# Heads, dims and rows.

def _no_dim_tail(spec: Attention, q: Array, cell: Any, *rest: Any) -> Array:
    """Dims past the last multiple of 32 do not reach the scores."""
    cut = q.copy()
    cut[..., spec.key_dim // 32 * 32 :] = 0
    return attend(RIGHT, spec, cut, cell, *rest)


def _no_value_tail(spec: Attention, *arrays: Any) -> Array:
    out = attend(RIGHT, spec, *arrays)
    out[..., spec.value_dim // 32 * 32 :] = 0
    return out


def _no_query_tail(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Queries in the part of a row behind its last tile of 16 are never written."""
    out = attend(RIGHT, spec, q, cell, batch, *rest)
    for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True):
        if stop - start > 16:
            out[start + (stop - start) // 16 * 16 : stop] = 0
    return out


def _empty_rows_not_counted(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Rows are numbered by those that have queries, tables and lengths by all."""
    busy = [r for r in range(len(batch.lengths)) if batch.starts[r] < batch.starts[r + 1]]
    starts = np.array([*(batch.starts[r] for r in busy), *[batch.starts[-1]] * (1 + len(batch.lengths) - len(busy))], np.int32)
    lengths = np.maximum(batch.lengths, np.append(np.diff(starts), 0)[: len(batch.lengths)])
    return attend(RIGHT, spec, q, cell, batch._replace(starts=starts, lengths=lengths), *rest)


def _stale_lengths(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Decoding rows still have the length that they had before the step."""
    single = np.diff(batch.starts) == 1
    lengths = np.where(single & (batch.lengths > 1), batch.lengths - 1, batch.lengths)
    return attend(RIGHT, spec, q, cell, batch._replace(lengths=lengths), *rest)


def _one_query_each(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """As many tokens as rows is taken for decoding."""
    if len(q) == len(batch.lengths):
        batch = batch._replace(starts=np.arange(len(q) + 1, dtype=np.int32))
    return attend(RIGHT, spec, q, cell, batch, *rest)


def _scaled_in_place(spec: Attention, q: Array, *rest: Any) -> Array:
    out = attend(RIGHT, spec, q, *rest)
    q *= q.dtype.type(0.5)
    return out


def _cleaning(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Zeroes the unused end of each row's last block, and the first slot of the next block with it."""
    out = attend(RIGHT, spec, q, cell, batch, *rest)
    size = cell.k.shape[-2]
    for row, length in enumerate(batch.lengths):
        cell.k[batch.groups[0].table[row, max(length - 1, 0) // size], :, max(length - 1, 0) % size + 1 :] = 0
    return out


def _groups_of_a_power_of_two(spec: Attention) -> Array:
    group = spec.heads.size // spec.kv_heads.size
    return np.arange(spec.heads.size) // 2 ** (group.bit_length() - 1) % spec.kv_heads.size


ROWS = [
    way("kv_head_by_remainder", OURS, kv_head=lambda spec: np.arange(spec.heads.size) % spec.kv_heads.size),
    way("kv_head_clipped", OURS, kv_head=lambda spec: np.minimum(np.arange(spec.heads.size), spec.kv_heads.size - 1)),
    way("kv_head_with_groups_of_a_power_of_two", OURS,
        kv_head=_groups_of_a_power_of_two),
    call("dims_past_32s_dropped", "sglang #39626", _no_dim_tail),
    call("value_dims_past_32s_dropped", "triton #630", _no_value_tail),
    call("last_queries_not_written", OURS, _no_query_tail),
    call("empty_rows_not_counted", OURS, _empty_rows_not_counted),
    call("stale_lengths", OURS, _stale_lengths),
    call("one_query_each_assumed", OURS, _one_query_each),
    call("queries_changed_in_place", OURS, _scaled_in_place),
    call("unused_slots_cleaned", OURS, _cleaning),
    call("answers_in_float32", OURS, lambda spec, *arrays: attend(RIGHT, spec, *arrays).astype(np.float32)),
]


# From call to call, and what is promised.

def _warm() -> Run:
    """The first call copies the new keys; a warm cache takes a path that skips the copy of the last one."""
    seen: set[Any] = set()

    def run(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
        key = (spec, batch.shape)
        warm = key in seen
        seen.add(key)
        return _stale_lengths(spec, q, cell, batch, *rest) if warm else attend(RIGHT, spec, q, cell, batch, *rest)

    return run


def _not_zeroed() -> Run:
    """The accumulator keeps a part of the last call of that shape."""
    kept: dict[Any, Array] = {}

    def run(spec: Attention, q: Array, *rest: Any) -> Array:
        out = attend(RIGHT, spec, q, *rest)
        kept[q.shape], out = out, (out + kept.get(q.shape, np.zeros_like(out))).astype(out.dtype)
        return out

    return run


def _atomics() -> Run:
    """Splits are added up in the order in which they happen to end."""
    calls = count()

    def run(*arguments: Any) -> Array:
        turn = next(calls) % 2
        order = (lambda first, stop, keys: [*range(first, stop, keys)][::-1]) if turn else range
        return attend(replace(RIGHT, tiles=order), *arguments)

    return run


def _by_neighbours(spec: Attention, q: Array, *rest: Any) -> Array:
    """Fewer keys to a tile where there are many tokens, and yet batch-invariance is promised."""
    return attend(replace(RIGHT, keys=16 if len(q) > 8 else 64), spec, q, *rest)


def _by_queries(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Decoding splits the keys otherwise than prefill does, and yet batch-invariance is promised."""
    out = attend(RIGHT, spec, q, cell, batch, *rest)
    single = np.flatnonzero(np.diff(batch.starts) == 1)
    out[batch.starts[single]] = attend(replace(RIGHT, keys=5), spec, q, cell, batch, *rest)[batch.starts[single]]
    return out


def _one_buffer() -> Run:
    buffers: dict[Any, Array] = {}

    def run(spec: Attention, *arrays: Any) -> Array:
        out = attend(RIGHT, spec, *arrays)
        kept = buffers.setdefault((spec, out.shape), out)
        kept[...] = out
        return kept

    return run


def _changing_its_mind() -> Callable[[Attention], str | None]:
    calls = count()
    return lambda spec: None if next(calls) % 2 else f"head_dim {spec.key_dim} is not tuned yet"


def refusal(name: str, make: Callable[[], Callable[[Attention], Any]]) -> Variant:
    def platform() -> MutantPlatform:
        return MutantPlatform(kernels=[Kernel("attention", f"planted.{name}", make(), partial(attend, RIGHT))])

    return Variant(f"attention.{name}", "attention", OURS, platform, FAMILIES["attention"])


PROMISES = [
    stateful("warm_path_skips_a_copy", "attention", "flash-attention #2886", _warm),
    stateful("accumulator_not_zeroed", "attention", "triton #187", _not_zeroed),
    stateful("order_of_sums_varies", "attention", OURS, _atomics),
    stateful("one_output_buffer", "attention", "vLLM #45704", _one_buffer),
    call("batch_invariance_broken_by_neighbours", OURS, _by_neighbours, batch_invariant=True),
    call("batch_invariance_broken_by_chunks", OURS, _by_queries, batch_invariant=True),
    refusal("says_no_and_computes", _changing_its_mind),
    call("says_yes_and_raises", OURS, lambda spec, *arrays: arrays[99]),
    refusal("says_no_without_a_reason", lambda: lambda spec: ""),
    refusal("says_no_with_false", lambda: lambda spec: False),
]

BUGS: Sequence[Variant] = (*PAGES, *MASKS, *SOFTMAX, *ROWS, *PROMISES)
