"""moe in Pallas: (token, rank) pairs sorted by expert into tiles of one expert each, and two products over all of them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ....ops import DTYPES, Kernel, Moe, Support
from ..jax.experts import gated
from .calls import COMPUTES, LANES, MIB, SUBLANES, Calls, ceil_div
from .experts_kernel import experts_kernel

F32 = jnp.float32
MOST_ROWS = 128
"""Of a tile."""
WEIGHT_BYTES = 16 * MIB
"""Of the weights of one step, in both of their buffers."""


def kernels(calls: Calls, device: Any) -> list[Kernel]:
    return [Kernel("moe", "pallas.moe", supports, partial(moe, calls), partial(prepare, device))]


def supports(spec: Moe) -> Support:
    if spec.dtype not in COMPUTES:
        return f"dtype {spec.dtype}; the kernel computes in {', '.join(COMPUTES)}"
    if spec.activation == "gelu":
        return "activation gelu; Mosaic, which compiles the kernel, has no erfc"
    least = LANES * DTYPES[spec.dtype].itemsize * 2 * max(2 * spec.embed, spec.mlp.size)
    if least > 2 * WEIGHT_BYTES:
        return f"experts of {spec.embed:,} by {spec.mlp.size:,} in {spec.dtype}; {LANES} outputs take {least // MIB} MiB of vector memory"
    return None


def prepare(device: Any, spec: Moe, parts: Sequence[Any]) -> tuple[jax.Array, ...]:
    """gate and up [experts, embed, mlp], down [experts, mlp, embed], inputs before outputs; then their biases [experts, 1, outputs]."""
    dtype = DTYPES[spec.dtype]
    tensors = [np.ascontiguousarray(np.asarray(part).astype(dtype).swapaxes(1, 2)) for part in parts[:3]]
    return tuple(jax.device_put(one, device) for one in (*tensors, *(np.asarray(part).astype(dtype)[:, None] for part in parts[3:])))


class Tiles(NamedTuple):
    """Pairs, `rows` of one expert together."""

    rows: int
    facts: jax.Array
    """[tiles + 1] each tile's expert, an unused one's that of the last used; then how many are used."""
    token: jax.Array
    """[tiles * rows] the token of each row; 0 where unused."""
    place: jax.Array
    """[pairs] where each pair's row is."""


def cut(experts: jax.Array, count: int, least: int) -> Tiles:
    """experts [tokens, top_k] of `count`. least: rows of the smallest tile."""
    pairs = experts.size
    rows = min(MOST_ROWS, max(least, 1 << (pairs // count).bit_length()))
    tiles = min((pairs + count * (rows - 1)) // rows, pairs)
    flat = experts.reshape(-1)
    order, counts = jnp.argsort(flat, stable=True), jnp.bincount(flat, length=count)
    needed = (counts + rows - 1) // rows
    ends = jnp.cumsum(needed)
    expert = jnp.searchsorted(ends, jnp.minimum(jnp.arange(tiles), ends[-1] - 1), side="right")
    mine = flat[order]
    place = (ends - needed)[mine] * rows + jnp.arange(pairs) - (jnp.cumsum(counts) - counts)[mine]
    return Tiles(
        rows, jnp.concatenate((expert, ends[-1:])).astype(jnp.int32),
        jnp.zeros(tiles * rows, jnp.int32).at[place].set(order // experts.shape[1]), jnp.zeros(pairs, jnp.int32).at[order].set(place),
    )


def moe(
    calls: Calls, spec: Moe, x: jax.Array, experts: jax.Array, weights: jax.Array, weight: Sequence[jax.Array], batch: Any,
) -> jax.Array:
    """x [tokens, embed] -> [tokens, embed]: each pair is computed in its own row, and a token's pairs are added in order."""
    if not x.shape[0]:
        return x
    tiles = cut(experts, weight[0].shape[0], SUBLANES * (1 if spec.dtype == "float32" else 2))
    (gate, up, down), biases = weight[:3], weight[3:]
    hidden = _products(calls, tiles, x[tiles.token], (gate, up), biases[:2], partial(gated, spec), x.dtype)
    answers = _products(calls, tiles, hidden, (down,), biases[2:], lambda y: y, F32)
    made = answers[tiles.place].reshape(*experts.shape, spec.embed)
    return (made * weights[..., None]).sum(1).astype(x.dtype)


def _products(
    calls: Calls, tiles: Tiles, x: jax.Array, weights: Sequence[jax.Array], biases: Sequence[jax.Array], finish: Callable[..., Any],
    dtype: Any,
) -> jax.Array:
    """x [tiles * rows, inputs] -> [tiles * rows, outputs]."""
    _, inputs, outputs = weights[0].shape
    width = next((size for size in (512, 256) if 2 * len(weights) * inputs * size * x.dtype.itemsize <= WEIGHT_BYTES), LANES)
    width = outputs if outputs <= width else width
    of_expert = [pl.BlockSpec((1, size, width), lambda n, m, facts: (facts[m], 0, n)) for size in (inputs, 1)]
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(ceil_div(outputs, width), len(tiles.facts) - 1),
        in_specs=[pl.BlockSpec((tiles.rows, inputs), lambda n, m, facts: (m, 0)), *(of_expert[0] for _ in weights),
                  *(of_expert[1] for _ in biases)],
        out_specs=pl.BlockSpec((tiles.rows, width), lambda n, m, facts: (m, n)),
    )
    out = jax.ShapeDtypeStruct((len(x), outputs), dtype)
    call = calls.call(partial(experts_kernel, finish, len(weights)), grid_spec, out, ("parallel", "arbitrary"))
    return call(tiles.facts, x, *weights, *biases)
