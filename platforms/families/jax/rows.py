"""linear, and ops whose every row stands alone: picks, arithmetic, activations, norms, rope. Float32 inside, rounded once."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ops import (
    DTYPES,
    Activation,
    Add,
    AddRmsNorm,
    Concat,
    Embedding,
    GatedActivation,
    HeadLinear,
    LayerNorm,
    Linear,
    Multiply,
    RmsNorm,
    Rope,
    Scale,
    Split,
    TakeRows,
)

F32 = jnp.float32
HIGHEST = jax.lax.Precision.HIGHEST
"""Float32 products are computed as such: several devices would take bfloat16 or TF32 otherwise."""


def prepare_linear(device: Any, spec: Linear, parts: Sequence[Any]) -> tuple[jax.Array, ...]:
    """The tensors under each other [sum of outputs, input], and the biases behind each other [sum of outputs]."""
    count = len(spec.outputs)
    stacked = [parts[:count], parts[count:]] if spec.bias else [parts]
    return tuple(jax.device_put(np.concatenate(same).astype(DTYPES[spec.dtype]), device) for same in stacked)


def linear(spec: Linear, x: jax.Array, weight: Sequence[jax.Array], batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or slices of one product, [tokens, output] each."""
    y = jnp.einsum("...i,oi->...o", x, weight[0], precision=HIGHEST, preferred_element_type=F32)
    y = (y + weight[1].astype(F32) if spec.bias else y).astype(spec.out_dtype or spec.dtype)
    if len(spec.outputs) == 1:
        return y
    return tuple(jnp.split(y, np.cumsum([dim.size for dim in spec.outputs])[:-1].tolist(), axis=-1))


def head_linear(spec: HeadLinear, x: jax.Array, weight: Sequence[jax.Array]) -> jax.Array:
    """x [tokens, heads, input] -> [tokens, heads, output]."""
    return jnp.einsum("thi,hoi->tho", x, weight[0], precision=HIGHEST, preferred_element_type=F32).astype(x.dtype)


def embedding(spec: Embedding, tokens: jax.Array, weight: Sequence[jax.Array]) -> jax.Array:
    return weight[0][tokens]


def take_rows(spec: TakeRows, x: jax.Array, rows: jax.Array) -> jax.Array:
    return x[rows]


def split(spec: Split, x: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(x, np.cumsum(spec.sizes)[:-1].tolist(), axis=-1))


def concat(spec: Concat, *parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)


def add(spec: Add, a: jax.Array, b: jax.Array) -> jax.Array:
    return a + b


def multiply(spec: Multiply, a: jax.Array, b: jax.Array) -> jax.Array:
    return a * b


def scale(spec: Scale, x: jax.Array) -> jax.Array:
    return (x.astype(F32) * spec.factor).astype(x.dtype)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    """0.5 x (1 + tanh(u)) as x sigmoid(2u), which loses no digits where tanh(u) is near -1."""
    return _silu_of(2 * sqrt(2 / pi) * (x + 0.044715 * x * x * x), x)


def _silu_of(gate: jax.Array, x: jax.Array) -> jax.Array:
    return x / (1 + jnp.exp(-gate))


FORMULAS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": lambda x: _silu_of(x, x),
    "gelu": lambda x: 0.5 * x * jax.lax.erfc(x * -sqrt(0.5)),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: jnp.maximum(x, 0),
    "tanh": jnp.tanh,
}


def activation(spec: Activation, x: jax.Array) -> jax.Array:
    return FORMULAS[spec.kind](x.astype(F32)).astype(x.dtype)


def gated_activation(spec: GatedActivation, gate: jax.Array, up: jax.Array) -> jax.Array:
    return (FORMULAS[spec.kind](gate.astype(F32)) * up.astype(F32)).astype(gate.dtype)


def prepare_norm(device: Any, spec: Any, parts: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Weight and bias in float32, with the spec's offset in the weight."""
    norm = spec.norm if isinstance(spec, AddRmsNorm) else spec
    weight, *bias = (np.asarray(part, np.float32) for part in parts)
    weight = weight + np.float32(norm.offset) if isinstance(norm, RmsNorm) else weight
    return tuple(jax.device_put(part, device) for part in (weight, *bias))


def rms_norm(spec: RmsNorm, x: jax.Array, weight: Sequence[jax.Array]) -> jax.Array:
    return _rms(spec, x.astype(F32), weight).astype(x.dtype)


def _rms(spec: RmsNorm, x: jax.Array, weight: Sequence[jax.Array]) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + spec.epsilon) * weight[0]


def layer_norm(spec: LayerNorm, x: jax.Array, weight: Sequence[jax.Array]) -> jax.Array:
    centred = x.astype(F32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + spec.epsilon) * weight[0]
    return (y + weight[1] if spec.bias else y).astype(x.dtype)


def add_rms_norm(spec: AddRmsNorm, x: jax.Array, residual: jax.Array, weight: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    total = x.astype(F32) + residual.astype(F32)
    return _rms(spec.norm, total, weight).astype(x.dtype), total.astype(x.dtype)


def rope(spec: Rope, x: jax.Array, batch: Any) -> jax.Array:
    """Angles are float32 products of position and frequency, as checkpoints were trained with."""
    angles = (batch.positions.astype(F32)[:, None] * np.asarray(spec.frequencies, np.float32))[:, None, :]
    cos, sin = jnp.cos(angles) * spec.scale, jnp.sin(angles) * spec.scale
    half = len(spec.frequencies)
    pairs = x[..., : 2 * half].astype(F32).reshape(*x.shape[:-1], *((half, 2) if spec.interleaved else (2, half)))
    axis = -1 if spec.interleaved else -2
    first, second = (jax.lax.index_in_dim(pairs, i, axis, keepdims=False) for i in (0, 1))
    made = jnp.stack((first * cos - second * sin, second * cos + first * sin), axis=axis)
    return jnp.concatenate((made.reshape(*x.shape[:-1], 2 * half).astype(x.dtype), x[..., 2 * half :]), axis=-1)
