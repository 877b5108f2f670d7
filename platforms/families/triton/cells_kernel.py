"""Device code of rope and of writing to cells [blocks, kv_heads, block_tokens, dim], apart and in one pass.

A program has one token and HEADS of its heads. A turned head is three parts of columns, each in a tile of its own:

    halves       [ first: 0 .. half )  [ second: half .. 2 half )  [ rest, as it is )
    interleaved  [ first: 0, 2, .. )   [ second: 1, 3, .. )        [ rest, as it is )
"""
from __future__ import annotations

import triton
import triton.language as tl

from .codes_kernel import code, coding, magnitude_bits


@triton.jit
def rope(
    out, x, positions, frequencies, heads, half, rest, x_token, x_head, scale,
    INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    """out [tokens, heads, 2 * half + rest], contiguous."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    _rope(out, x, positions, frequencies, token, head, heads, half, rest, x_token, x_head, scale, INTERLEAVED, HALF, REST)


@triton.jit
def write_kv(
    k_cell, v_cell, k_scales, v_scales, k, v, slots, heads, key_dim, value_dim, block_tokens, k_token, k_head, v_token, v_head,
    k_block, v_block, scale_block, LATENT: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr,
    HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):
    """LIMIT: the code of a group's largest magnitude; 0 writes floats."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    block, offset = _slot(slots, token, block_tokens)
    place = offset + head * block_tokens
    _write_row(k_cell + block * k_block, k_scales, block * scale_block, k + token * k_token, k_head, head, heads, place, key_dim,
               LIMIT, FLOAT8, KEYS)
    if not LATENT:
        _write_row(v_cell + block * v_block, v_scales, block * scale_block, v + token * v_token, v_head, head, heads, place, value_dim,
                   LIMIT, FLOAT8, VALUES)


@triton.jit
def qkv_rope_write(
    out, q, k, v, k_cell, v_cell, k_scales, v_scales, slots, positions, frequencies, q_heads, heads, half, rest, value_dim, block_tokens,
    q_token, q_head, k_token, k_head, v_token, v_head, k_block, v_block, scale_block, scale,
    INTERLEAVED: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
):
    """The first programs of a token turn its queries, those behind them turn and write its keys, and write its values."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts = tl.cdiv(q_heads, HEADS)
    if part < q_parts:
        head = (part * HEADS + tl.arange(0, HEADS))[:, None]
        _rope(out, q, positions, frequencies, token, head, q_heads, half, rest, q_token, q_head, scale, INTERLEAVED, HALF, REST)
    else:
        head = ((part - q_parts) * HEADS + tl.arange(0, HEADS))[:, None]
        block, offset = _slot(slots, token, block_tokens)
        place = offset + head * block_tokens
        _write_turned(k_cell + block * k_block, k_scales, block * scale_block, k + token * k_token + head * k_head, positions, frequencies,
                      token, head < heads, place, half, rest, scale, INTERLEAVED, LIMIT, FLOAT8, HALF, REST)
        _write_row(v_cell + block * v_block, v_scales, block * scale_block, v + token * v_token, v_head, head, heads, place, value_dim,
                   LIMIT, FLOAT8, VALUES)


@triton.jit
def _slot(slots, token, block_tokens):
    """(block in 64 bits, offset) of a token."""
    slot = tl.load(slots + token)
    return (slot // block_tokens).to(tl.int64), slot % block_tokens


@triton.jit
def _rope(
    out, x, positions, frequencies, token, head, heads, half, rest, x_token, x_head, scale,
    INTERLEAVED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    start, made = x + token * x_token + head * x_head, out + (token * heads + head) * (2 * half + rest)
    first, second = _turned(start, positions, frequencies, token, head < heads, half, scale, INTERLEAVED, HALF)
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    inside = (head < heads) & pair
    tl.store(made + at_first, first.to(out.dtype.element_ty), mask=inside)
    tl.store(made + at_second, second.to(out.dtype.element_ty), mask=inside)
    if REST > 0:
        lane = tl.arange(0, REST)[None, :]
        kept = (head < heads) & (lane < rest)
        tl.store(made + 2 * half + lane, tl.load(start + 2 * half + lane, mask=kept, other=0.0), mask=kept)


@triton.jit
def _pairs(half, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    """(columns of the first and of the second of each pair [1, HALF], whether the pair exists)."""
    lane = tl.arange(0, HALF)[None, :]
    if INTERLEAVED:
        return 2 * lane, 2 * lane + 1, lane < half
    else:
        return lane, half + lane, lane < half


@triton.jit
def _turned(start, positions, frequencies, token, exists, half, scale, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    """Both halves [HEADS, HALF] in float32. The angle is the float32 product of position and frequency."""
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    lane = tl.arange(0, HALF)[None, :]
    angle = tl.load(positions + token).to(tl.float32) * tl.load(frequencies + lane, mask=pair, other=0.0)
    cos, sin = cos_sin(angle)
    cos, sin = cos * scale, sin * scale
    first = tl.load(start + at_first, mask=exists & pair, other=0.0).to(tl.float32)
    second = tl.load(start + at_second, mask=exists & pair, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def cos_sin(angle):
    """Of any float32 angle below 2^30: quarter turns taken off in float64, then the series of Cephes on what is left.

    The libraries of the chips keep a table on the stack for large angles, which few registers are left for.
    """
    wide = angle.to(tl.float64)
    quarters = (wide * 0.6366197723675814 + 6755399441055744.0) - 6755399441055744.0
    x = (wide - quarters * 1.5707963267948966).to(tl.float32)
    quarter = quarters.to(tl.int32)
    z = x * x
    sin = x + x * z * ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1)
    cos = 1.0 - 0.5 * z + z * z * ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2)
    odd = (quarter & 1) != 0
    turned_cos, turned_sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where(((quarter + 1) & 2) != 0, -turned_cos, turned_cos), tl.where((quarter & 2) != 0, -turned_sin, turned_sin)


@triton.jit
def _write_turned(
    cell, scales, scale_start, start, positions, frequencies, token, exists, place, half, rest, scale,
    INTERLEAVED: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    """Keys, rounded to their dtype once turned: what a cell of codes holds are the codes of that."""
    dtype: tl.constexpr = start.dtype.element_ty
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    inside = exists & pair
    first, second = _turned(start, positions, frequencies, token, exists, half, scale, INTERLEAVED, HALF)
    first, second = first.to(dtype), second.to(dtype)
    row = cell + place.to(tl.int64) * (2 * half + rest)
    if REST > 0:
        lane = tl.arange(0, REST)[None, :]
        kept = exists & (lane < rest)
        tail = tl.load(start + 2 * half + lane, mask=kept, other=0.0)
    if LIMIT:
        largest = tl.maximum(_largest(first, inside), _largest(second, inside))
        if REST > 0:
            largest = tl.maximum(largest, _largest(tail, kept))
        inverse, made, finite = coding(largest, LIMIT)
        tl.store(scales + scale_start + place, made, mask=exists)
        tl.store(row + at_first, code(first.to(tl.float32), inverse, finite, FLOAT8), mask=inside)
        tl.store(row + at_second, code(second.to(tl.float32), inverse, finite, FLOAT8), mask=inside)
        if REST > 0:
            tl.store(row + 2 * half + lane, code(tail.to(tl.float32), inverse, finite, FLOAT8), mask=kept)
    else:
        tl.store(row + at_first, first, mask=inside)
        tl.store(row + at_second, second, mask=inside)
        if REST > 0:
            tl.store(row + 2 * half + lane, tail, mask=kept)


@triton.jit
def _write_row(
    cell, scales, scale_start, start, head_stride, head, heads, place, dim, LIMIT: tl.constexpr, FLOAT8: tl.constexpr, DIM: tl.constexpr,
):
    """Heads of one token to their places in a block, as they are or as codes."""
    lane = tl.arange(0, DIM)[None, :]
    inside = (head < heads) & (lane < dim)
    values = tl.load(start + head * head_stride + lane, mask=inside, other=0.0)
    row = cell + place.to(tl.int64) * dim + lane
    if LIMIT:
        inverse, made, finite = coding(_largest(values, inside), LIMIT)
        tl.store(scales + scale_start + place, made, mask=head < heads)
        tl.store(row, code(values.to(tl.float32), inverse, finite, FLOAT8), mask=inside)
    else:
        tl.store(row, values, mask=inside)


@triton.jit
def _largest(values, inside):
    """[HEADS, 1]: the largest magnitude's bits."""
    return tl.max(tl.where(inside, magnitude_bits(values.to(tl.float32)), 0), axis=1, keep_dims=True)
