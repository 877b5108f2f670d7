"""Device code of linear under a scheme: codes stay codes until they are in registers.

Inputs are cut into segments, each of which has one scale of the weight and one of the activation; a segment is filled up to
`PADDED` lanes with codes of 0, so that weights need no mask, whatever the group:

    inputs    [ segment 0    | segment 1    | segment 2 ..]       codes of a line of the weight, PADDED each
    x         [ codes or floats, as the graph has them     ]       loaded by true place, zeros past a segment's end
    int4      [ low: segment 0, high: segment 1 | low: segment 2, high: segment 3 ]

A product over one step (integers in int32, else float32) is multiplied by both scales; with WHOLE, the sum of all is.
"""
from __future__ import annotations

import triton
import triton.language as tl

from .codes_kernel import code, coding, magnitude_bits
from .linear_kernel import store_tile, tile_of
from .widen_kernel import widened


@triton.jit
def quantize_rows(
    codes, scales, x, rows, inputs, x_stride, GROUP: tl.constexpr, GROUPS: tl.constexpr, LIMIT: tl.constexpr,
    FORM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):
    """x [rows, inputs] -> codes [rows, inputs] and scales [rows, GROUPS] of one group each, to the bit as ops/quantize.py.

    FORM: int8, e4m3, or e4m3fnuz, whose bits mean half as much and have no -0. Masks: the last rows, the group's end.
    """
    group = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, BLOCK_INPUTS)
    first = group * GROUP
    size = tl.minimum(inputs - first, GROUP)
    line = row.to(tl.int64)[:, None]
    largest = tl.zeros((BLOCK_ROWS,), tl.int32)
    for start in range(0, size, BLOCK_INPUTS):
        inside = (row < rows)[:, None] & (start + lane < size)[None, :]
        values = tl.load(x + line * x_stride + (first + start + lane)[None, :], mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(magnitude_bits(values), axis=1))
    inverse, scale, finite = coding(largest, LIMIT)
    tl.store(scales + row.to(tl.int64) * GROUPS + group, scale, mask=row < rows)
    for start in range(0, size, BLOCK_INPUTS):
        inside = (row < rows)[:, None] & (start + lane < size)[None, :]
        values = tl.load(x + line * x_stride + (first + start + lane)[None, :], mask=inside, other=0.0).to(tl.float32)
        made = code(values, inverse[:, None], finite[:, None], FORM != "int8")
        if FORM == "e4m3fnuz":
            made = tl.where(made == 0x80, 0, made).to(tl.uint8)
        tl.store(codes + line * inputs + (first + start + lane)[None, :], made, mask=inside)


@triton.jit
def halves(packed, HIGH: tl.constexpr):
    """The low or the high four bits of int8, with their sign."""
    return packed >> 4 if HIGH else (packed << 4).to(tl.int8) >> 4


@triton.jit
def multiplied(codes, values, zeros, sums, product: tl.constexpr, INT4: tl.constexpr):
    """codes [outputs, step], values [step, rows], zeros [outputs] pointers or None -> sums + (codes - zeros) values.

    product: what both become on the way into the matrix unit; nothing is rounded there.
    """
    if product == tl.int8:
        if zeros is None:
            made = tl.dot(codes, values, sums, out_dtype=tl.int32)
        elif INT4:
            made = tl.dot(codes - tl.load(zeros)[:, None], values, sums, out_dtype=tl.int32)
        else:
            shift = tl.load(zeros).to(tl.int32)[:, None] * tl.sum(values.to(tl.int32), axis=0)[None, :]
            made = tl.dot(codes, values, sums, out_dtype=tl.int32) - shift
    elif product == tl.float32 or product == tl.bfloat16 or product == tl.float16:
        made = tl.dot(shifted(codes, zeros, product), values_of(values, product), sums, input_precision="ieee")
    else:
        made = tl.dot(codes, values, sums, max_num_imprecise_acc=codes.shape[1])
    return made


@triton.jit
def shifted(codes, zeros, dtype: tl.constexpr):
    """codes - zeros as floats: at most 255, which every dtype has. Not in bfloat16, which few chips compute in."""
    wide: tl.constexpr = tl.float32 if dtype == tl.bfloat16 else dtype
    if zeros is None:
        made = widened(codes, dtype)
    else:
        made = (widened(codes, wide) - widened(tl.load(zeros), wide)[:, None]).to(dtype)
    return made


@triton.jit
def values_of(values, dtype: tl.constexpr):
    """Activations as floats: codes are widened, floats are of that dtype already."""
    return values if values.dtype == dtype else widened(values, dtype)


@triton.jit
def group_of(segment, SEGMENTS: tl.constexpr):
    """The group of scales that a segment belongs to; 0 SEGMENTS: there is one for all."""
    return segment // SEGMENTS if SEGMENTS else 0


@triton.jit
def scaled(product, scales, x_scales):
    """product [outputs, rows] in float32, times scales [outputs] and x_scales [rows] behind these pointers; None: 1."""
    made = product.to(tl.float32) * tl.load(scales).to(tl.float32)[:, None]
    return made if x_scales is None else made * tl.load(x_scales)[None, :]


@triton.jit
def quantized_linear(
    out, partial, x, x_scales, weight, scales, zeros, bias, rows, outputs, inputs, x_stride, weight_stride, steps, scale_rows, x_groups,
    SPLITS: tl.constexpr, product: tl.constexpr, INT4: tl.constexpr, WHOLE: tl.constexpr, MASKED: tl.constexpr, FACTOR: tl.constexpr,
    SEGMENT: tl.constexpr, PADDED: tl.constexpr, SCALE_OUTPUTS: tl.constexpr, SCALE_SEGMENTS: tl.constexpr, X_SEGMENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BAND: tl.constexpr,
):
    """x [rows, inputs], weight [outputs, segments * PADDED] codes -> out [rows, outputs].

    steps: of BLOCK_INPUTS lanes, over all segments, or over pairs of them with INT4. scales, zeros [groups, scale_rows], where
    SCALE_OUTPUTS outputs share a row (0: all). FACTOR: what a product's codes mean less than e4m3 does.
    """
    row_tile, output_tile = tile_of(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(outputs, BLOCK_OUTPUTS), BAND)
    each = tl.cdiv(steps, SPLITS)
    begin = tl.program_id(1) * each
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lane = tl.arange(0, BLOCK_INPUTS)
    # Lines past a tail repeat the last one: what they give is not stored.
    x_row, line = tl.minimum(row, rows - 1), tl.minimum(output, outputs - 1)
    x_at = x + x_row.to(tl.int64)[None, :] * x_stride + lane[:, None]
    weight_at = weight + line.to(tl.int64)[:, None] * weight_stride + lane[None, :]
    scale_at = line // SCALE_OUTPUTS if SCALE_OUTPUTS else line * 0
    x_scale_at = None if x_scales is None else x_scales + x_row.to(tl.int64) * x_groups
    held = tl.int32 if product == tl.int8 else tl.float32
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), held if WHOLE else tl.float32)
    STEPS: tl.constexpr = PADDED // BLOCK_INPUTS
    for step in range(begin, tl.minimum(begin + each, steps)):
        packed = tl.load(weight_at + step * BLOCK_INPUTS)
        place = step % STEPS * BLOCK_INPUTS
        for part in tl.static_range(2 if INT4 else 1):
            segment = step // STEPS * (2 if INT4 else 1) + part
            start = segment * SEGMENT + place
            if MASKED:
                inside = (lane < SEGMENT - place) & (lane < inputs - start)
                values = tl.load(x_at + start, mask=inside[:, None], other=0.0)
            else:
                values = tl.load(x_at + start)
            codes = halves(packed, part) if INT4 else packed
            # The high half of the last bytes may stand for a segment that is not there: its values are 0, its scale the last one.
            segment = tl.minimum(segment, (inputs - 1) // SEGMENT) if INT4 else segment
            group = group_of(segment, SCALE_SEGMENTS)
            zero_at = None if zeros is None else zeros + group * scale_rows + scale_at
            if WHOLE:
                sums = multiplied(codes, values, zero_at, sums, product, INT4)
            else:
                part_sums = multiplied(codes, values, zero_at, tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), held), product, INT4)
                own = None if x_scales is None else x_scale_at + group_of(segment, X_SEGMENTS)
                sums += scaled(part_sums, scales + group * scale_rows + scale_at, own)
    total = scaled(sums, scales + scale_at, x_scale_at) if WHOLE else sums
    store_tile(out, partial, total * FACTOR, bias, row, output, rows, outputs, SPLITS)
