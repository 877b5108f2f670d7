"""A product with quantized weights on a TPU: codes are widened in vector memory, and scales meet the sums.

    y = sum over segments s of  x_scale[s] * scale[s] * (x[s] (codes[s] - zero[s]))    + bias

A segment is a stretch of inputs in which all scales stay the same; it is the first dimension of each operand, so that any length of it
lies in whole tiles. Grid: (tokens, outputs, segments), the last one after the other into one sum.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

F32 = jnp.float32


@dataclass(frozen=True)
class Product:
    """What a program is compiled for."""

    dtype: str
    """Of both operands when the matrix unit takes them: int8 (sums are int32), bfloat16 or float32."""
    int4: bool
    """Two segments' codes in a byte: the even one's low, the odd one's high."""
    segments: int
    """Of one step."""
    whole: bool
    """One scale for all inputs: it meets the sum of all segments."""
    x_segments: int
    """Segments that share a scale of the activation; 0: there are no such scales."""


def quantized_kernel(product: Product, names: tuple[str, ...], *refs: Any) -> None:
    """names: what `refs` are, in order; those of absent features are left out.

    x [segments, tokens, inputs], codes [segments, inputs, outputs] (of int4 half as many segments), scales and zeros [segments, 1, outputs]
    ([1, 1, outputs] where whole), x_scales [tokens, groups], bias [1, outputs], out [tokens, outputs], sum [tokens, outputs].
    """
    ref = dict(zip(names, refs, strict=True))
    step = pl.program_id(2)

    @pl.when(step == 0)
    def start() -> None:
        ref["sum"][...] = jnp.zeros_like(ref["sum"])

    ref["sum"][...] += _summed(product, ref, step).astype(ref["sum"].dtype)

    @pl.when(step == pl.num_programs(2) - 1)
    def finish() -> None:
        y = ref["sum"][...].astype(F32)
        if product.whole:
            y = y * ref["scales"][0]
            y = y if product.x_segments == 0 else y * ref["x_scales"][...]
        y = y + ref["bias"][...] if "bias" in ref else y
        ref["out"][...] = y.astype(ref["out"].dtype)


def _summed(product: Product, ref: dict[str, Any], step: Any) -> Any:
    """[tokens, outputs] of one step's segments, with their scales unless these are the same for all."""
    x, codes = ref["x"][...], ref["codes"][...]
    codes = _unpacked(codes) if product.int4 else codes
    zeros = ref["zeros"][...] if "zeros" in ref else None
    if product.dtype == "int8":
        y = _products(x, codes.astype(jnp.int8), jnp.int32)
        if zeros is not None:
            y = y.astype(F32) - jnp.sum(x.astype(F32), axis=-1, keepdims=True) * zeros
    else:
        wide = codes.astype(F32) if zeros is None else codes.astype(F32) - zeros
        y = _products(x.astype(product.dtype), wide.astype(product.dtype), F32)
    if product.whole:
        return jnp.sum(y, axis=0)
    y = y.astype(F32) * ref["scales"][...]
    if product.x_segments == 0:
        return jnp.sum(y, axis=0)
    group = jax.lax.broadcasted_iota(jnp.int32, ref["x_scales"].shape, 1)
    total = jnp.zeros(y.shape[1:], F32)
    for place in range(product.segments):
        here = group == jax.lax.div(step * product.segments + place, product.x_segments)
        total = total + y[place] * jnp.sum(jnp.where(here, ref["x_scales"][...], 0), axis=-1, keepdims=True)
    return total


def _products(x: Any, codes: Any, dtype: Any) -> Any:
    """[segments, tokens, inputs] times [segments, inputs, outputs]."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == F32 else None
    return jax.lax.dot_general(x, codes, (((2,), (1,)), ((0,), (0,))), precision, dtype)


def _unpacked(codes: Any) -> Any:
    """Bytes [pairs, inputs, outputs] -> int32 codes of twice as many segments."""
    wide = codes.astype(jnp.int32)
    low, high = jax.lax.shift_right_arithmetic(jax.lax.shift_left(wide, 28), 28), jax.lax.shift_right_arithmetic(wide, 4)
    return jnp.stack((low, high), axis=1).reshape(-1, *codes.shape[1:])
