"""Device code of norms and activations. Rows are independent; float32 inside, rounded once.

Rows r of an input lie at (r // inner) * outer_stride + (r % inner) * inner_stride, so that heads inside a fused
projection need no copy. A tile is [ROWS, BLOCK]; a norm's BLOCK covers the row.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(out, x, weight, rows, size, inner, outer_stride, inner_stride, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, lane, inside = _tile(rows, size, ROWS, BLOCK)
    values = tl.load(x + _start(row, inner, outer_stride, inner_stride) + lane, mask=inside, other=0.0).to(tl.float32)
    made = _rms(values, weight, lane, size, epsilon)
    tl.store(out + row * size + lane, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_rms_norm(
    out, total, x, residual, weight, rows, size, inner, outer_stride, inner_stride, residual_outer, residual_inner, epsilon,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """out = rms_norm(x + residual), total = x + residual; the sum is rounded only where it is stored."""
    row, lane, inside = _tile(rows, size, ROWS, BLOCK)
    values = tl.load(x + _start(row, inner, outer_stride, inner_stride) + lane, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(residual + _start(row, inner, residual_outer, residual_inner) + lane, mask=inside, other=0.0)
    values += added.to(tl.float32)
    tl.store(total + row * size + lane, values.to(total.dtype.element_ty), mask=inside)
    made = _rms(values, weight, lane, size, epsilon)
    tl.store(out + row * size + lane, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm(
    out, x, weight, bias, rows, size, inner, outer_stride, inner_stride, epsilon,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    row, lane, inside = _tile(rows, size, ROWS, BLOCK)
    values = tl.load(x + _start(row, inner, outer_stride, inner_stride) + lane, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1, keep_dims=True) / size
    centred = tl.where(lane < size, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / size
    made = centred * tl.rsqrt(variance + epsilon) * tl.load(weight + lane, mask=lane < size, other=0.0)
    if BIAS:
        made += tl.load(bias + lane, mask=lane < size, other=0.0)
    tl.store(out + row * size + lane, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activation(
    out, gate, up, rows, size, gate_inner, gate_outer_stride, gate_inner_stride, up_outer_stride, up_inner_stride,
    KIND: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """out = activation(gate) [* up]."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    lane = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < rows) & (lane < size)
    made = formula(tl.load(gate + _start(row, gate_inner, gate_outer_stride, gate_inner_stride) + lane, mask=inside, other=0.0), KIND)
    if GATED:
        factor = tl.load(up + _start(row, gate_inner, up_outer_stride, up_inner_stride) + lane, mask=inside, other=0.0)
        made *= factor.to(tl.float32)
    tl.store(out + row * size + lane, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def formula(x, KIND: tl.constexpr):
    """The activation in float32, of any float."""
    x = x.to(tl.float32)
    if KIND == "silu":
        made = x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        made = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        made = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif KIND == "relu":
        made = tl.where(x < 0, 0.0, x)
    else:
        tl.static_assert(KIND == "tanh")
        made = _tanh(x)
    return made


@triton.jit
def _tanh(x):
    """From exp(-2|x|), and near 0, where that loses digits, from the series."""
    size = tl.abs(x)
    fade = tl.exp(-2.0 * size)
    square = x * x
    near = ((62.0 / 2835 * square - 17.0 / 315) * square + 2.0 / 15) * square - 1.0 / 3
    made = tl.where(size < 0.25, size + size * square * near, (1.0 - fade) / (1.0 + fade))
    return tl.where(x < 0, -made, made)


@triton.jit
def _rms(values, weight, lane, size, epsilon):
    """The mean is over `size`; lanes past it hold zeros."""
    inverse = tl.rsqrt(tl.sum(values * values, axis=1, keep_dims=True) / size + epsilon)
    return values * inverse * tl.load(weight + lane, mask=lane < size, other=0.0)


@triton.jit
def _tile(rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(row [ROWS, 1] in 64 bits, lane [1, BLOCK], whether both exist)."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    return row, lane, (row < rows) & (lane < size)


@triton.jit
def _start(row, inner, outer_stride, inner_stride):
    """Where rows begin, in 64 bits."""
    return row // inner * outer_stride + row % inner * inner_stride
