"""Device code of products of rows with weights in floats: y = x W^T + b.

Everything is turned, so that weights are the first operand of the matrix unit, where few rows leave nothing idle:

                 rows                     one program: BLOCK_OUTPUTS x BLOCK_ROWS sums in float32,
               x^T [inputs]               over the steps of one split of the inputs
    weight   [ ............ ]
    outputs  [  y^T tile    ]             splits > 1: sums go to `partial` [splits, rows, outputs],
    [inputs] [ ............ ]             and `add_splits` adds them up in their order
"""
from __future__ import annotations

import triton
import triton.language as tl

from .rows_kernel import formula


@triton.jit
def tile_of(program, row_tiles, output_tiles, BAND: tl.constexpr):
    """(row tile, output tile): BAND output tiles with all rows, then the next ones, so that both stay in the cache."""
    width = BAND * row_tiles
    first = (program // width) * BAND
    size = tl.minimum(output_tiles - first, BAND)
    return (program % width) // size, first + (program % width) % size


@triton.jit
def store_tile(out, partial, sums, bias, row, output, rows, outputs, SPLITS: tl.constexpr):
    """sums [outputs, rows] of this program: rounded into out [rows, outputs], or as they are into partial. Masks: both tails."""
    inside = (output < outputs)[:, None] & (row < rows)[None, :]
    place = row.to(tl.int64)[None, :] * outputs + output[:, None]
    if SPLITS > 1:
        tl.store(partial + tl.program_id(1).to(tl.int64) * rows * outputs + place, sums, mask=inside)
    else:
        if bias is not None:
            sums += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear(
    out, partial, x, weight, bias, rows, outputs, inputs, x_stride,
    SPLITS: tl.constexpr, WHOLE_STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, BAND: tl.constexpr,
):
    """x [rows, inputs], weight [outputs, inputs] -> out [rows, outputs]. WHOLE_STEPS: BLOCK_INPUTS divides the inputs."""
    row_tile, output_tile = tile_of(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(outputs, BLOCK_OUTPUTS), BAND)
    steps = tl.cdiv(tl.cdiv(inputs, BLOCK_INPUTS), SPLITS)
    begin = tl.program_id(1) * steps * BLOCK_INPUTS
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = output_tile * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lane = tl.arange(0, BLOCK_INPUTS)
    # Lines past a tail repeat the last one: what they give is not stored.
    x_at = x + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * x_stride + lane[:, None]
    weight_at = weight + tl.minimum(output, outputs - 1).to(tl.int64)[:, None] * inputs + lane[None, :]
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.float32)
    for start in range(begin, tl.minimum(begin + steps * BLOCK_INPUTS, inputs), BLOCK_INPUTS):
        if WHOLE_STEPS:
            weights = tl.load(weight_at + start)
            values = tl.load(x_at + start)
        else:
            inside = lane < inputs - start
            weights = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
            values = tl.load(x_at + start, mask=inside[:, None], other=0.0)
        sums = tl.dot(weights, values, sums, input_precision="ieee")
    store_tile(out, partial, sums, bias, row, output, rows, outputs, SPLITS)


@triton.jit
def linear_of_one_row(
    out, x, weight, bias, outputs, inputs,
    WHOLE_STEPS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):
    """x [inputs], weight [outputs, inputs] -> out [outputs]: the weights stream through registers, a sum per lane, added up at the end."""
    output = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lane = tl.arange(0, BLOCK_INPUTS)[None, :]
    weight_at = weight + tl.minimum(output, outputs - 1).to(tl.int64)[:, None] * inputs + lane
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    for start in range(0, inputs, BLOCK_INPUTS):
        inside = (lane < inputs - start) | WHOLE_STEPS
        weights = tl.load(weight_at + start, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        sums += weights * tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=1)
    if bias is not None:
        total += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)
    tl.store(out + output, total.to(out.dtype.element_ty), mask=output < outputs)


@triton.jit
def gated_of_one_row(
    out, x, weight, bias, size, inputs,
    KIND: tl.constexpr, WHOLE_STEPS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):
    """x [inputs], weight [2 * size, inputs] of a gate over an up -> out [size], activation(gate) * up, as linear_of_one_row."""
    output = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    lane = tl.arange(0, BLOCK_INPUTS)[None, :]
    line = tl.minimum(output, size - 1).to(tl.int64)
    gate_at = weight + line[:, None] * inputs + lane
    up_at = weight + (line + size)[:, None] * inputs + lane
    gates = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    ups = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
    for start in range(0, inputs, BLOCK_INPUTS):
        inside = (lane < inputs - start) | WHOLE_STEPS
        values = tl.load(x + start + lane, mask=inside, other=0.0).to(tl.float32)
        gates += tl.load(gate_at + start, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32) * values
        ups += tl.load(up_at + start, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32) * values
    gate, up = tl.sum(gates, axis=1), tl.sum(ups, axis=1)
    if bias is not None:
        gate += tl.load(bias + output, mask=output < size, other=0.0).to(tl.float32)
        up += tl.load(bias + size + output, mask=output < size, other=0.0).to(tl.float32)
    tl.store(out + output, (formula(gate, KIND) * up).to(out.dtype.element_ty), mask=output < size)


@triton.jit
def add_splits(out, partial, bias, outputs, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """partial [SPLITS, rows, outputs] float32 -> out [rows, outputs], a row in each line of programs; from the first split to the last."""
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = output < outputs
    place = tl.program_id(1).to(tl.int64) * outputs + output
    size = tl.num_programs(1).to(tl.int64) * outputs
    sums = tl.load(partial + place, mask=inside, other=0.0)
    for split in range(1, SPLITS):
        sums += tl.load(partial + split * size + place, mask=inside, other=0.0)
    if bias is not None:
        sums += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)
