"""linear under a scheme: codes and scales stay on the device, and become float32 when they are used."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ops import Linear, Quantized, Scheme
from .codes import coded
from .rows import F32, HIGHEST


def prepare(device: Any, spec: Linear, parts: Sequence[Any]) -> tuple[Any, ...]:
    """For each output a `Quantized` of arrays, an int4 code in a byte of its own; then the biases in float32."""
    def placed(part: Any) -> Any:
        if not isinstance(part, Quantized):
            return jax.device_put(np.asarray(part).astype(np.float32), device)
        floats = (None if one is None else jax.device_put(one.astype(np.float32), device) for one in part[1:])
        return Quantized(jax.device_put(np.asarray(part.codes), device), *floats)  # type: ignore[arg-type]

    return tuple(map(placed, parts))


def linear(spec: Linear, x: jax.Array, weight: Sequence[Any], batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or a tuple of them; float32 inside, rounded once."""
    assert spec.scheme is not None
    count, dtype = len(spec.outputs), spec.out_dtype or spec.dtype
    wide = _requantized(x, spec.scheme)
    made = [jnp.einsum("...i,oi->...o", wide, _weight(part, spec.scheme), precision=HIGHEST) for part in weight[:count]]
    if spec.bias:
        made = [y + bias for y, bias in zip(made, weight[count:], strict=True)]
    rounded = tuple(y.astype(dtype) for y in made)
    return rounded if count > 1 else rounded[0]


def quantized_rows(x: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
    """x [tokens, input] -> codes [tokens, groups, values], the last group filled up with zeros, and scales [tokens, groups, 1]."""
    assert scheme.activation is not None
    group = scheme.activation_group or x.shape[-1]
    tiles = jnp.pad(x, ((0, 0), (0, -x.shape[-1] % group))).reshape(len(x), -(-x.shape[-1] // group), group)
    return coded(tiles, scheme.activation)


def _requantized(x: jax.Array, scheme: Scheme) -> jax.Array:
    """x in float32, after the way through its codes where the scheme quantizes activations."""
    if scheme.activation is None:
        return x.astype(F32)
    codes, scales = quantized_rows(x, scheme)
    return (codes.astype(F32) * scales).reshape(len(x), codes.shape[1] * codes.shape[2])[:, : x.shape[-1]]


def _weight(part: Any, scheme: Scheme) -> jax.Array:
    """[outputs, inputs] in float32."""
    outputs, inputs = part.codes.shape

    def spread(values: jax.Array) -> jax.Array:
        return jnp.repeat(jnp.repeat(values, scheme.rows or outputs, 0)[:outputs], scheme.group or inputs, 1)[:, :inputs]

    codes = part.codes.astype(F32)
    return (codes if part.zeros is None else codes - spread(part.zeros)) * spread(part.scales)
