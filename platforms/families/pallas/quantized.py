"""linear under a scheme in Pallas: codes laid out once in segments, activations quantized on the fly by XLA."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ....ops import Kernel, Linear, Quantized, Scheme, Support
from ..jax.quantized import quantized_rows
from ..supports import Plain
from .calls import COMPUTES, LANES, Calls, ceil_div, filled
from .quantized_kernel import Product, quantized_kernel

PLAIN = Plain("Pallas")
F32 = jnp.float32
ROWS = 32
"""Inputs in a tile of bytes: what a segment is filled up to multiples of."""
LONG = 1024
"""Inputs of a segment where one scale holds for all of them."""
EXACT_INPUTS = 2**31 // 2**14
"""Products of two int8 codes that an int32 holds the sum of."""
BLOCK_TOKENS = 256
BLOCK_OUTPUTS = 512
PRODUCTS = 1 << 20
"""Of a step, over all of its segments, before they are added up."""


def kernels(calls: Calls, device: Any) -> list[Kernel]:
    return [Kernel("linear", "pallas.quantized_linear", supports, partial(linear, calls), partial(prepare, device))]


def supports(spec: Linear) -> Support:
    if spec.dtype not in COMPUTES:
        return f"dtype {spec.dtype}; the kernel computes in {', '.join(COMPUTES)}"
    return PLAIN.quantized(spec) or _segmented(spec) or _summed(spec)


def _segmented(spec: Linear) -> Support:
    weight, activation = groups_of(spec)
    if weight and activation and weight % activation and activation % weight:
        return f"groups of {weight} inputs with activations in groups of {activation}: one must divide the other"
    return None


def _summed(spec: Linear) -> Support:
    laid = layout(spec)
    if laid.dtype == "int8" and laid.whole and spec.input.size > EXACT_INPUTS:
        return f"a sum over {spec.input.size:,} codes may pass 32 bits; up to {EXACT_INPUTS:,} inputs of one scale"
    return None


@dataclass(frozen=True)
class Layout:
    """How one spec's weight lies in memory."""

    dtype: str
    """Of the product: int8, bfloat16 or float32."""
    segment: int
    """Inputs of a segment; all scales are the same within it."""
    filled: int
    """Rows of a segment, with those that fill it up."""
    segments: int
    """With those that fill up the last step."""
    weight_segments: int
    """Segments that share a scale of the weight; 0: all."""
    x_segments: int
    """Segments that share a scale of the activation; 0: all, or activations are not quantized."""

    @property
    def whole(self) -> bool:
        return not (self.weight_segments or self.x_segments)


def groups_of(spec: Linear) -> tuple[int | None, int | None]:
    """Inputs of a scale of the weight and of the activation; None: all of them."""
    scheme, inputs = spec.scheme, spec.input.size
    assert scheme is not None
    weight, activation = (group if group and group < inputs else None for group in (scheme.group, scheme.activation_group))
    return weight, activation if scheme.activation else None


@lru_cache(maxsize=1024)
def layout(spec: Linear) -> Layout:
    assert spec.scheme is not None
    inputs, (weight, activation) = spec.input.size, groups_of(spec)
    segment = min((group for group in (weight, activation) if group), default=min(LONG, filled(inputs, LANES)))
    segments = ceil_div(inputs, segment)
    segments = filled(segments, 8 if segments > 8 else 2 if spec.scheme.weight == "int4" else 1)
    return Layout(_product(spec), segment, filled(segment, ROWS), segments,
                  weight // segment if weight else 0, activation // segment if activation else 0)


def _product(spec: Linear) -> str:
    scheme = spec.scheme
    assert scheme is not None
    if scheme.activation is None:
        return spec.dtype
    return "int8" if scheme.activation == "int8" and scheme.weight.startswith("int") else "bfloat16"


class Packed(NamedTuple):
    """A fused weight: codes [segments, inputs, outputs] (of int4 a byte for two segments), scales and zeros [segments or 1, 1, outputs]."""

    codes: jax.Array
    scales: jax.Array
    zeros: jax.Array | None
    bias: jax.Array | None
    """[1, outputs]."""


def prepare(device: Any, spec: Linear, parts: Sequence[Any]) -> Packed:
    scheme, laid, count = spec.scheme, layout(spec), len(spec.outputs)
    assert scheme is not None
    weights: list[Quantized] = list(parts[:count])
    codes = _codes(laid, np.concatenate([np.asarray(part.codes) for part in weights]), scheme.weight == "int4")
    bias = np.concatenate([np.asarray(part, np.float32) for part in parts[count:]])[None] if spec.bias else None

    def spread(name: str) -> np.ndarray[Any, Any]:
        rows = [_rows(np.asarray(getattr(part, name), np.float32), scheme, len(part.codes)) for part in weights]
        return _per_segment(laid, np.concatenate(rows))

    made = Packed(codes, spread("scales"), spread("zeros") if scheme.zeros else None, bias)
    return Packed(*(None if one is None else jax.device_put(one, device) for one in made))


def _codes(laid: Layout, codes: np.ndarray[Any, Any], int4: bool) -> np.ndarray[Any, Any]:
    """[outputs, inputs] -> [segments, filled, outputs], or bytes [segments / 2, filled, outputs]."""
    whole = np.zeros((laid.segments, laid.filled, len(codes)), codes.dtype)
    padded = np.zeros((len(codes), laid.segments * laid.segment), codes.dtype)
    padded[:, : codes.shape[1]] = codes
    whole[:, : laid.segment] = padded.reshape(len(codes), laid.segments, laid.segment).transpose(1, 2, 0)
    return (whole[1::2] << 4) | (whole[::2] & 0xF) if int4 else whole


def _rows(values: np.ndarray[Any, Any], scheme: Scheme, outputs: int) -> np.ndarray[Any, Any]:
    """[groups of outputs, groups of inputs] -> [outputs, groups of inputs]."""
    return np.repeat(values, scheme.rows or outputs, 0)[:outputs]


def _per_segment(laid: Layout, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[outputs, groups of inputs] -> [segments, 1, outputs], or [1, 1, outputs] where one holds for all."""
    if laid.whole:
        return np.ascontiguousarray(values.T[:, None])
    spread = np.repeat(values.T, laid.weight_segments or laid.segments, 0)[: laid.segments]
    return np.pad(spread, ((0, laid.segments - len(spread)), (0, 0)))[:, None]


def linear(calls: Calls, spec: Linear, x: jax.Array, weight: Packed, batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or a tuple of them; float32 or int32 inside, rounded once."""
    sizes, dtype = [dim.size for dim in spec.outputs], spec.out_dtype or spec.dtype
    y = _multiply(calls, spec, x, weight) if len(x) else jnp.zeros((0, sum(sizes)), dtype)
    return y if len(sizes) == 1 else tuple(jnp.split(y, np.cumsum(sizes)[:-1].tolist(), axis=-1))


def _multiply(calls: Calls, spec: Linear, x: jax.Array, weight: Packed) -> jax.Array:
    assert spec.scheme is not None
    laid, int4, (tokens, inputs), outputs = layout(spec), spec.scheme.weight == "int4", x.shape, weight.scales.shape[-1]
    x_scales = None
    if spec.scheme.activation is not None:
        codes, scales = quantized_rows(x, spec.scheme)
        x, x_scales = codes.reshape(tokens, -1)[:, :inputs], scales[..., 0]
    x = jnp.pad(x, ((0, 0), (0, laid.segments * laid.segment - inputs)))
    x = jnp.pad(x.reshape(tokens, laid.segments, laid.segment).swapaxes(0, 1), ((0, 0), (0, 0), (0, laid.filled - laid.segment)))

    block_tokens, block_outputs = min(BLOCK_TOKENS, filled(tokens, ROWS)), min(BLOCK_OUTPUTS, filled(outputs, LANES))
    step = max(size for size in (1, 2, 4, 8) if laid.segments % size == 0
               and size * laid.filled <= max(LONG, 2 * laid.filled) and size * block_tokens * block_outputs <= 2 * PRODUCTS)
    held = step // 2 if int4 else step
    product = Product(laid.dtype, int4, step, laid.whole, 0 if x_scales is None else laid.x_segments or laid.segments)

    def of_outputs(segments: int) -> pl.BlockSpec:
        if laid.whole:
            return pl.BlockSpec((1, 1, block_outputs), lambda m, n, k: (0, 0, n))
        return pl.BlockSpec((segments, 1, block_outputs), lambda m, n, k: (k, 0, n))

    operands: dict[str, tuple[Any, pl.BlockSpec]] = {
        "x": (x, pl.BlockSpec((step, block_tokens, laid.filled), lambda m, n, k: (k, m, 0))),
        "codes": (weight.codes, pl.BlockSpec((held, laid.filled, block_outputs), lambda m, n, k: (k, 0, n))),
        "scales": (weight.scales, of_outputs(step)),
    }
    if weight.zeros is not None:
        operands["zeros"] = weight.zeros, of_outputs(step)
    if x_scales is not None:
        operands["x_scales"] = x_scales, pl.BlockSpec((block_tokens, x_scales.shape[1]), lambda m, n, k: (m, 0))
    if weight.bias is not None:
        operands["bias"] = weight.bias, pl.BlockSpec((1, block_outputs), lambda m, n, k: (0, n))
    exact = laid.whole and laid.dtype == "int8" and weight.zeros is None
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=0, grid=(ceil_div(tokens, block_tokens), ceil_div(outputs, block_outputs), laid.segments // step),
        in_specs=[blocks for _, blocks in operands.values()],
        out_specs=pl.BlockSpec((block_tokens, block_outputs), lambda m, n, k: (m, n)),
        scratch_shapes=[pltpu.VMEM((block_tokens, block_outputs), jnp.int32 if exact else F32)],
    )
    out = jax.ShapeDtypeStruct((tokens, outputs), spec.out_dtype or spec.dtype)
    kernel = partial(quantized_kernel, product, (*operands, "out", "sum"))
    return calls.call(kernel, grid_spec, out, ("parallel", "parallel", "arbitrary"))(*(array for array, _ in operands.values()))
