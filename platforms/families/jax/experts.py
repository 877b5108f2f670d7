"""router and moe: (token, rank) pairs sorted by expert, and one ragged product over all experts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ops import DTYPES, Moe, Router
from .rows import F32, FORMULAS, HIGHEST


def router(spec: Router, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits [tokens, experts] -> ids and weights [tokens, top_k]. Gates rise with their logits, so these are sorted."""
    gates = 1 / (1 + jnp.exp(-logits)) if spec.sigmoid else jax.nn.softmax(logits, axis=-1)
    experts = jnp.argsort(-logits, axis=-1, stable=True)[..., : spec.top_k]
    weights = jnp.take_along_axis(gates, experts, axis=-1)
    return experts.astype(jnp.int32), weights / weights.sum(-1, keepdims=True) if spec.renormalize else weights


def prepare(device: Any, spec: Moe, parts: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """gate beside up [experts, embed, 2 * mlp], and down [experts, mlp, embed]: what a ragged product reads."""
    gate, up, down = (np.asarray(part).astype(DTYPES[spec.dtype]).swapaxes(1, 2) for part in parts)
    return jax.device_put(np.concatenate((gate, up), axis=2), device), jax.device_put(np.ascontiguousarray(down), device)


def moe(
    spec: Moe, x: jax.Array, experts: jax.Array, weights: jax.Array, weight: Sequence[jax.Array], batch: Any,
) -> jax.Array:
    """x [tokens, embed] -> [tokens, embed]: each pair is computed in its own place, and a token's pairs are added in order."""
    if not x.shape[0]:
        return x
    order = jnp.argsort(experts.reshape(-1), stable=True)
    counts = jnp.bincount(experts.reshape(-1), length=spec.experts.size)
    gate, up = jnp.split(_ragged(x[order // spec.top_k], weight[0], counts), 2, axis=-1)
    hidden = (FORMULAS[spec.activation](gate) * up).astype(x.dtype)
    made = jnp.zeros((order.size, spec.embed), F32).at[order].set(_ragged(hidden, weight[1], counts))
    return (made.reshape(*experts.shape, spec.embed) * weights[..., None]).sum(1).astype(x.dtype)


def _ragged(x: jax.Array, weight: jax.Array, counts: jax.Array) -> jax.Array:
    """x [pairs, input] sorted by expert, weight [experts, input, output] -> [pairs, output] in float32."""
    return jax.lax.ragged_dot(x, weight, counts, precision=HIGHEST, preferred_element_type=F32)
