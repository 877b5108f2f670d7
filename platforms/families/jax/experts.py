"""router and moe: (token, rank) pairs sorted by expert, and one ragged product over all experts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ops import DTYPES, Moe, Router
from .rows import F32, FORMULAS, HIGHEST


def router(spec: Router, logits: jax.Array, bias: Sequence[jax.Array] | None = None) -> tuple[jax.Array, jax.Array]:
    """logits [tokens, experts] -> ids and weights [tokens, top_k]. Without a bias gates rise with their logits, so these are sorted."""
    gates = 1 / (1 + jnp.exp(-logits)) if spec.sigmoid else jax.nn.softmax(logits, axis=-1)
    ranks = logits if bias is None else _ranks(spec, gates + bias[0])
    experts = jnp.argsort(-ranks, axis=-1, stable=True)[..., : spec.top_k]
    weights = jnp.take_along_axis(gates, experts, axis=-1)
    weights = weights / weights.sum(-1, keepdims=True) if spec.renormalize else weights
    return experts.astype(jnp.int32), weights if spec.scale is None else weights * spec.scale


def _ranks(spec: Router, biased: jax.Array) -> jax.Array:
    """Biased gates [tokens, experts], and -inf in groups that are not kept."""
    if spec.groups is None:
        return biased
    grouped = biased.reshape(len(biased), spec.groups, spec.experts.size // spec.groups)
    scores = jnp.sort(grouped, axis=-1)[..., -2:].sum(-1)
    order = jnp.argsort(-scores, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where((rank < spec.top_groups)[..., None], grouped, -jnp.inf).reshape(biased.shape)


def prepare(device: Any, spec: Moe, parts: Sequence[Any]) -> tuple[jax.Array, ...]:
    """gate beside up [experts, embed, 2 * mlp], and down [experts, mlp, embed], what a ragged product reads; then their biases."""
    dtype = DTYPES[spec.dtype]
    tensors = [np.asarray(part).astype(dtype).swapaxes(1, 2) for part in parts[:3]]
    triples = [tensors, [np.asarray(part).astype(dtype) for part in parts[3:]]] if spec.bias else [tensors]
    placed = [one for gate, up, down in triples for one in (np.concatenate((gate, up), axis=-1), np.ascontiguousarray(down))]
    return tuple(jax.device_put(one, device) for one in placed)


def moe(
    spec: Moe, x: jax.Array, experts: jax.Array, weights: jax.Array, weight: Sequence[jax.Array], batch: Any,
) -> jax.Array:
    """x [tokens, embed] -> [tokens, embed]: each pair is computed in its own place, and a token's pairs are added in order."""
    if not x.shape[0]:
        return x
    flat = experts.reshape(-1)
    order, counts = jnp.argsort(flat, stable=True), jnp.bincount(flat, length=spec.experts.size)

    def linear(rows: jax.Array, place: int) -> jax.Array:
        y = _ragged(rows, weight[place], counts)
        return y + weight[2 + place][flat[order]].astype(F32) if spec.bias else y

    gate, up = jnp.split(linear(x[order // spec.top_k], 0), 2, axis=-1)
    answers = linear(gated(spec, gate, up).astype(x.dtype), 1)
    made = jnp.zeros((order.size, spec.embed), F32).at[order].set(answers)
    return (made.reshape(*experts.shape, spec.embed) * weights[..., None]).sum(1).astype(x.dtype)


def gated(spec: Moe, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What stands between the linears: [..., mlp] of each, in float32."""
    if spec.limit is None or spec.alpha is None:
        return FORMULAS[spec.activation](gate) * up
    gate, up = jnp.minimum(gate, spec.limit), jnp.clip(up, -spec.limit, spec.limit)
    return gate / (1 + jnp.exp(-spec.alpha * gate)) * (up + 1)


def _ragged(x: jax.Array, weight: jax.Array, counts: jax.Array) -> jax.Array:
    """x [pairs, input] sorted by expert, weight [experts, input, output] -> [pairs, output] in float32."""
    return jax.lax.ragged_dot(x, weight, counts, precision=HIGHEST, preferred_element_type=F32)
