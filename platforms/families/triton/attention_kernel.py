"""Attention on the device: a tile of queries and heads walks its keys with a running softmax (Dao et al. 2022).

    peak' = max(peak, max s)    total' = total 2^(peak - peak') + sum 2^(s - peak')    mixed' likewise, times values

A tile's lanes are the tokens of one row times HEADS heads of one KV head's group, so that they share what is loaded:

    lane       0      1      2      3      4      5    ..        HEADS = 3
    token     t0     t0     t0     t1     t1     t1
    head       0      1      2      0      1      2

Dims are cut in two powers of two (576 = 512 + 64). With splits, each share of the keys leaves (peak, total, mixed) to
attention_merge_kernel.py. Scores are logarithms to base 2, as the device's exponential is.
"""
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
CODE_SCALE = tl.constexpr(256.0)
"""e4m3 bits read as those of a float16 are this much too small."""


VARYING = ("tokens", "rows", "splits", "least_keys", "table_width", "window")
"""Numbers that change from step to step or layer to layer: the compiler learns nothing about them."""


@triton.jit(do_not_specialize=VARYING)
def attention_kernel(
    out, parts, peaks, totals, q, k, v, k_scale, v_scale, table, row_of, starts, lengths, sinks, slopes,
    tokens, rows, splits, least_keys, heads, kv_heads, table_width, q_token, q_head, window, softcap, scale,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ONE_QUERY: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_0: tl.constexpr, KEY_1: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_0: tl.constexpr, VALUE_1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """out [tokens, heads, VALUE_DIM]; with splits parts [splits, tokens, heads, VALUE_DIM], peaks and totals without the last.

    Grid: tiles of queries; kv_heads times chunks of a group; splits. None stands for what a spec lacks: parts, peaks, totals,
    v (values are the head of the keys), scales, sinks, slopes, window, softcap. scale: see `attention.factors`.
    """
    TOKENS: tl.constexpr = BLOCK_M // HEADS
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head, split = tl.program_id(1) // CHUNKS, tl.program_id(2)
    if ONE_QUERY:
        first = tl.program_id(0)
        row = tl.load(row_of + first)
        row_stop = tl.load(starts + row + 1)
        used = (tl.load(starts + row) <= first) & (first < row_stop)
        stop = first + 1
    else:
        # The rows behind come first: of one long prompt those with the most keys.
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
        row = _row_of(tile, starts, rows, TOKENS)
        used = row < rows
        row_start = tl.load(starts + row)
        row_stop = tl.load(starts + row + 1, mask=used, other=tokens)
        first = row_start + (tile - row_start // TOKENS - row) * TOKENS
        stop = tl.minimum(first + TOKENS, row_stop)
        if first >= row_stop:
            return

    lane = tl.arange(0, BLOCK_M)
    token, in_group = first + lane // HEADS, tl.program_id(1) % CHUNKS * HEADS + lane % HEADS
    head = kv_head * GROUP + in_group
    # Lanes past the tile's tokens or the group's heads are idle.
    held = (token < stop) & (in_group < GROUP)
    place = token.to(tl.int64) * heads + head
    at_part = split.to(tl.int64) * tokens * heads + place

    ahead = tl.load(lengths + row, mask=used, other=0) - row_stop
    low = 0
    if window is not None:
        low = tl.maximum(0, first + ahead - window + 1)
    begin, end = _share(low // BLOCK_N * BLOCK_N, stop + ahead, split, splits, least_keys, BLOCK_N)
    if (begin >= end) | (used == 0):
        if parts is not None:
            tl.store(peaks + at_part, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=held)
            tl.store(totals + at_part, tl.zeros([BLOCK_M], tl.float32), mask=held)
        else:
            _store(out, tl.zeros([BLOCK_M, VALUE_0], tl.float32), place, held, 0, VALUE_DIM)
            if VALUE_1 > 0:
                _store(out, tl.zeros([BLOCK_M, VALUE_1], tl.float32), place, held, VALUE_0, VALUE_DIM)
        return

    # Idle lanes compute what the tile's first one does.
    q += tl.where(held, token, first).to(tl.int64) * q_token + tl.where(held, head, kv_head * GROUP) * q_head
    q0 = _load(q, 0, KEY_0, KEY_DIM)
    q1 = q0
    if KEY_1 > 0:
        q1 = _load(q, KEY_0, KEY_1, KEY_DIM)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head, mask=held, other=0.0) * LOG2E
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:
        # In the first share alone.
        peak = tl.where(split == 0, tl.load(sinks + head, mask=held, other=0.0).to(tl.float32) * LOG2E, peak)
        total = tl.where(split == 0, 1.0, total)
    mixed0 = tl.zeros([BLOCK_M, VALUE_0], tl.float32)
    mixed1 = peak
    if VALUE_1 > 0:
        mixed1 = tl.zeros([BLOCK_M, VALUE_1], tl.float32)

    table += row.to(tl.int64) * table_width
    block_slots = kv_heads * BLOCK_TOKENS
    k += kv_head.to(tl.int64) * BLOCK_TOKENS * KEY_DIM
    if v is not None:
        v += kv_head.to(tl.int64) * BLOCK_TOKENS * VALUE_DIM
    if k_scale is not None:
        k_scale += kv_head * BLOCK_TOKENS
    if v_scale is not None:
        v_scale += kv_head * BLOCK_TOKENS
    position = token + ahead

    if ONE_QUERY:
        full_stop = begin
    else:
        full = begin
        if window is not None:
            # All queries see keys from the last one's window on, up to the first one's position.
            full = tl.minimum(tl.cdiv(tl.maximum(0, stop + ahead - window), BLOCK_N) * BLOCK_N, end)
            full = tl.maximum(full, begin)
            peak, total, mixed0, mixed1 = _walk(
                begin, full, True, peak, total, mixed0, mixed1, q0, q1, k, v, k_scale, v_scale, table, block_slots, position, slope,
                low, end, window, softcap, scale, BLOCK_TOKENS, KEY_DIM, KEY_0, KEY_1, VALUE_DIM, VALUE_0, VALUE_1, BLOCK_N)
        full_stop = tl.maximum(tl.minimum((first + ahead + 1) // BLOCK_N * BLOCK_N, end), full)
        peak, total, mixed0, mixed1 = _walk(
            full, full_stop, False, peak, total, mixed0, mixed1, q0, q1, k, v, k_scale, v_scale, table, block_slots, position, slope,
            low, end, window, softcap, scale, BLOCK_TOKENS, KEY_DIM, KEY_0, KEY_1, VALUE_DIM, VALUE_0, VALUE_1, BLOCK_N)
    peak, total, mixed0, mixed1 = _walk(
        full_stop, end, True, peak, total, mixed0, mixed1, q0, q1, k, v, k_scale, v_scale, table, block_slots, position, slope,
        low, end, window, softcap, scale, BLOCK_TOKENS, KEY_DIM, KEY_0, KEY_1, VALUE_DIM, VALUE_0, VALUE_1, BLOCK_N)

    if parts is not None:
        tl.store(peaks + at_part, peak, mask=held)
        tl.store(totals + at_part, total, mask=held)
        _store(parts, mixed0, at_part, held, 0, VALUE_DIM)
        if VALUE_1 > 0:
            _store(parts, mixed1, at_part, held, VALUE_0, VALUE_DIM)
    else:
        _store(out, mixed0 / total[:, None], place, held, 0, VALUE_DIM)
        if VALUE_1 > 0:
            _store(out, mixed1 / total[:, None], place, held, VALUE_0, VALUE_DIM)


@triton.jit
def _walk(
    begin, end, EDGE: tl.constexpr, peak, total, mixed0, mixed1, q0, q1, k, v, k_scale, v_scale, table, block_slots, position, slope,
    low, high, window, softcap, scale, BLOCK_TOKENS: tl.constexpr, KEY_DIM: tl.constexpr, KEY_0: tl.constexpr,
    KEY_1: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_0: tl.constexpr, VALUE_1: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """The softmax carried over keys begin .. end - 1. EDGE: some query does not see one of them.

    Memory is read at low .. high - 1 alone: what is not seen stands for its nearest neighbour there, and weighs nothing.
    """
    lane = tl.arange(0, BLOCK_N)
    block = tl.load(table + _within(begin + lane, low, high) // BLOCK_TOKENS)
    for start in range(begin, end, BLOCK_N):
        key = start + lane
        found = key
        if EDGE:
            found = _within(key, low, high)
        slot = block.to(tl.int64) * block_slots + found % BLOCK_TOKENS
        # One tile ahead, so that the loads of keys and values do not wait for it.
        block = tl.load(table + _within(key + BLOCK_N, low, high) // BLOCK_TOKENS)

        keys0 = _decoded(_load(k + slot * KEY_DIM, 0, KEY_0, KEY_DIM), q0.dtype)
        scores = tl.dot(q0, tl.trans(keys0), input_precision="ieee")
        keys1 = keys0
        if KEY_1 > 0:
            keys1 = _decoded(_load(k + slot * KEY_DIM, KEY_0, KEY_1, KEY_DIM), q0.dtype)
            scores = tl.dot(q1, tl.trans(keys1), scores, input_precision="ieee")
        value_scales = None
        if k_scale is not None:
            key_scales = _scales(k_scale + slot, k)
            scores *= key_scales[None, :]
            value_scales = key_scales
            if v_scale is not None:
                value_scales = _scales(v_scale + slot, v)
        # A scale that nothing else comes between is applied with the subtraction of the peak, in one instruction.
        unit = 1.0
        if softcap is not None:
            grown = 1 + tl.exp2(scores * scale)
            if q0.dtype == tl.float32:
                scores = softcap * (1 - 2 / grown)
            else:
                # 1 / grown to 16 bits and more without a division, which takes ten instructions and, on AMD, masks of lanes.
                root = tl.rsqrt(grown)
                scores = softcap - 2 * softcap * root * root
        elif slope is not None:
            scores *= scale
        else:
            unit = scale
        if slope is not None:
            scores += slope[:, None] * (key[None, :] - position[:, None])
        if EDGE:
            behind = position[:, None] - key[None, :]
            visible = behind >= 0
            if window is not None:
                # Both ends in one comparison, what is ahead being large without its sign: AMD has few registers for masks.
                visible = behind.to(tl.uint32) < window.to(tl.uint32)
            scores = tl.where(visible, scores, float("-inf"))

        higher = tl.maximum(peak, tl.max(scores, 1) * unit)
        base = higher
        if EDGE:
            # A query that saw nothing so far: -inf less -inf would be NaN.
            base = tl.where(higher == float("-inf"), 0.0, higher)
        weights, fade = tl.exp2(scores * unit - base[:, None]), tl.exp2(peak - base)
        total = total * fade + tl.sum(weights, 1)
        peak = higher

        if v is None:
            values0 = keys0
        else:
            values0 = _decoded(_load(v + slot * VALUE_DIM, 0, VALUE_0, VALUE_DIM), q0.dtype)
        mixed0 = _mixed(mixed0 * fade[:, None], weights, values0, value_scales)
        if VALUE_1 > 0:
            if v is None:
                values1 = keys1
            else:
                values1 = _decoded(_load(v + slot * VALUE_DIM, VALUE_0, VALUE_1, VALUE_DIM), q0.dtype)
            mixed1 = _mixed(mixed1 * fade[:, None], weights, values1, value_scales)
    return peak, total, mixed0, mixed1


@triton.jit
def _mixed(mixed, weights, values, scales):
    """mixed [lanes, dim] + weights [lanes, keys] @ values [keys, dim], with a scale for each key or None."""
    if scales is not None:
        if values.dtype == tl.float16:
            # A weight times a small scale would leave float16's range.
            values = (values.to(tl.float32) * scales[:, None]).to(tl.float16)
        else:
            weights *= scales[None, :]
    return tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")


@triton.jit
def _row_of(tile, starts, rows, TOKENS: tl.constexpr):
    """The row of a tile: row r has tiles starts[r] // TOKENS + r and on. Row `rows` is the padding behind all."""
    low, high = 0, rows
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(starts + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _share(low, high, split, splits, least_keys, BLOCK_N: tl.constexpr):
    """(begin, end) of one split's keys: whole tiles of BLOCK_N, at least `least_keys` where there are as many."""
    keys = tl.maximum(tl.cdiv(tl.cdiv(high - low, splits), BLOCK_N) * BLOCK_N, least_keys)
    return low + split * keys, tl.minimum(low + (split + 1) * keys, high)


@triton.jit
def _within(key, low, high):
    """The key of low .. high - 1 that is nearest."""
    return tl.minimum(tl.maximum(key, low), high - 1)


@triton.jit
def _scales(at, codes):
    """[keys]: the scale of each."""
    found = tl.load(at)
    if codes.dtype.element_ty == tl.uint8:
        found *= CODE_SCALE
    return found


@triton.jit
def _load(at, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """[lanes, WIDTH]: entries FIRST and on of the vectors at `at`; past DIM it is 0."""
    dim = FIRST + tl.arange(0, WIDTH)
    at = at[:, None] + dim[None, :]
    if FIRST + WIDTH > DIM:
        found = tl.load(at, mask=(dim < DIM)[None, :], other=0)
    else:
        found = tl.load(at)
    return found


@triton.jit
def _decoded(x, dtype: tl.constexpr):
    """x in `dtype`. uint8: e4m3 without NaN, CODE_SCALE times too small; exact on every chip, those without the type too."""
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        made = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(dtype)
    else:
        made = x.to(dtype)
    return made


@triton.jit
def _store(base, x, place, held, FIRST: tl.constexpr, DIM: tl.constexpr):
    """x [lanes, width] to entries FIRST and on of vectors `place` of DIM."""
    dim = FIRST + tl.arange(0, x.shape[1])
    mask = held[:, None]
    if FIRST + x.shape[1] > DIM:
        mask = mask & (dim < DIM)[None, :]
    tl.store(base + place[:, None] * DIM + dim[None, :], x.to(base.dtype.element_ty), mask=mask)
