"""Device code of rope and of writing to cells [blocks, kv_heads, block_tokens, dim], apart and in one pass.

A program has ROWS rows; row r is head r % heads of token r // heads. A turned row is three parts of columns, each in a
tile of its own:

    halves       [ first: 0 .. half )  [ second: half .. 2 half )  [ rest, as it is )
    interleaved  [ first: 0, 2, .. )   [ second: 1, 3, .. )        [ rest, as it is )
"""
from __future__ import annotations

import triton
import triton.language as tl

from .codes_kernel import code, coding, magnitude_bits


@triton.jit
def rope(
    out, x, positions, frequencies, tokens, heads, half, rest, x_token, x_head, scale,
    INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    """out [tokens, heads, 2 * half + rest], contiguous."""
    _rope(out, x, positions, frequencies, tl.program_id(0), tokens, heads, half, rest, x_token, x_head, scale,
          INTERLEAVED, ROWS, HALF, REST)


@triton.jit
def write_kv(
    k_cell, v_cell, k_scales, v_scales, k, v, slots, tokens, heads, key_dim, value_dim, block_tokens, k_token, k_head, v_token, v_head,
    k_block, v_block, scale_block, LATENT: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
):
    """LIMIT: the code of a group's largest magnitude; 0 writes floats."""
    token, head, exists = _rows(tl.program_id(0), tokens, heads, ROWS)
    block, place = _places(slots, token, head, exists, block_tokens)
    _write_row(k_cell + block * k_block, k_scales, block * scale_block + place, k + token * k_token + head * k_head,
               exists, place, key_dim, LIMIT, FLOAT8, KEYS)
    if not LATENT:
        _write_row(v_cell + block * v_block, v_scales, block * scale_block + place, v + token * v_token + head * v_head,
                   exists, place, value_dim, LIMIT, FLOAT8, VALUES)


@triton.jit
def qkv_rope_write(
    out, q, k, v, k_cell, v_cell, k_scales, v_scales, slots, positions, frequencies, tokens, q_heads, heads, half, rest, value_dim,
    block_tokens, q_token, q_head, k_token, k_head, v_token, v_head, k_block, v_block, scale_block, scale,
    INTERLEAVED: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
):
    """The first programs turn queries, those behind them turn and write keys, and write values."""
    part = tl.program_id(0)
    q_parts = tl.cdiv(tokens * q_heads, ROWS)
    if part < q_parts:
        _rope(out, q, positions, frequencies, part, tokens, q_heads, half, rest, q_token, q_head, scale, INTERLEAVED, ROWS, HALF, REST)
    else:
        token, head, exists = _rows(part - q_parts, tokens, heads, ROWS)
        block, place = _places(slots, token, head, exists, block_tokens)
        _write_turned(k_cell + block * k_block, k_scales, block * scale_block + place, k + token * k_token + head * k_head, positions,
                      frequencies, token, exists, place, half, rest, scale, INTERLEAVED, LIMIT, FLOAT8, HALF, REST)
        _write_row(v_cell + block * v_block, v_scales, block * scale_block + place, v + token * v_token + head * v_head,
                   exists, place, value_dim, LIMIT, FLOAT8, VALUES)


@triton.jit
def _rows(part, tokens, heads, ROWS: tl.constexpr):
    """(token in 64 bits, head, whether they exist), [ROWS, 1] each."""
    row = (part.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    token = row // heads
    return token, row % heads, token < tokens


@triton.jit
def _places(slots, token, head, exists, block_tokens):
    """(block, row within it) of tokens' heads, in 64 bits."""
    slot = tl.load(slots + token, mask=exists, other=0).to(tl.int64)
    return slot // block_tokens, head * block_tokens + slot % block_tokens


@triton.jit
def _rope(
    out, x, positions, frequencies, part, tokens, heads, half, rest, x_token, x_head, scale,
    INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    token, head, exists = _rows(part, tokens, heads, ROWS)
    start, made = x + token * x_token + head * x_head, out + (token * heads + head) * (2 * half + rest)
    first, second = _turned(start, positions, frequencies, token, exists, half, scale, INTERLEAVED, HALF)
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    tl.store(made + at_first, first.to(out.dtype.element_ty), mask=exists & pair)
    tl.store(made + at_second, second.to(out.dtype.element_ty), mask=exists & pair)
    if REST > 0:
        lane = tl.arange(0, REST)[None, :]
        kept = exists & (lane < rest)
        tl.store(made + 2 * half + lane, tl.load(start + 2 * half + lane, mask=kept, other=0.0), mask=kept)


@triton.jit
def _pairs(half, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    """(columns of the first and of the second of each pair [1, HALF], whether the pair exists)."""
    lane = tl.arange(0, HALF)[None, :]
    first = 2 * lane if INTERLEAVED else lane
    second = 2 * lane + 1 if INTERLEAVED else half + lane
    return first, second, lane < half


@triton.jit
def _turned(start, positions, frequencies, token, exists, half, scale, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    """Both halves [ROWS, HALF] in float32. The angle is the float32 product of position and frequency."""
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    lane = tl.arange(0, HALF)[None, :]
    angle = tl.load(positions + token, mask=exists, other=0).to(tl.float32) * tl.load(frequencies + lane, mask=pair, other=0.0)
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
    cell, scales, scale_place, start, positions, frequencies, token, exists, place, half, rest, scale,
    INTERLEAVED: tl.constexpr, LIMIT: tl.constexpr, FLOAT8: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):
    """Keys, rounded to their dtype once turned: what a cell of codes holds are the codes of that."""
    dtype: tl.constexpr = start.dtype.element_ty
    at_first, at_second, pair = _pairs(half, INTERLEAVED, HALF)
    inside = exists & pair
    first, second = _turned(start, positions, frequencies, token, exists, half, scale, INTERLEAVED, HALF)
    first, second = first.to(dtype), second.to(dtype)
    row = cell + place * (2 * half + rest)
    if REST > 0:
        lane = tl.arange(0, REST)[None, :]
        kept = exists & (lane < rest)
        tail = tl.load(start + 2 * half + lane, mask=kept, other=0.0)
    if LIMIT:
        largest = tl.maximum(_largest(first, inside), _largest(second, inside))
        if REST > 0:
            largest = tl.maximum(largest, _largest(tail, kept))
        inverse, made, finite = coding(largest, LIMIT)
        tl.store(scales + scale_place, made, mask=exists)
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
def _write_row(cell, scales, scale_place, start, exists, place, dim, LIMIT: tl.constexpr, FLOAT8: tl.constexpr, DIM: tl.constexpr):
    """Rows to their places in blocks, as they are or as codes."""
    lane = tl.arange(0, DIM)[None, :]
    inside = exists & (lane < dim)
    values = tl.load(start + lane, mask=inside, other=0.0)
    row = cell + place * dim + lane
    if LIMIT:
        inverse, made, finite = coding(_largest(values, inside), LIMIT)
        tl.store(scales + scale_place, made, mask=exists)
        tl.store(row, code(values.to(tl.float32), inverse, finite, FLOAT8), mask=inside)
    else:
        tl.store(row, values, mask=inside)


@triton.jit
def _largest(values, inside):
    """[ROWS, 1]: the largest magnitude's bits."""
    return tl.max(tl.where(inside, magnitude_bits(values.to(tl.float32)), 0), axis=1, keep_dims=True)
