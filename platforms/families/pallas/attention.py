"""attention in Pallas: queries packed into tiles of one row, and how many keys and heads a program takes at a time.

One call holds prefill, decode and mixed rows.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ....ops import Attention, Batch, Kernel, Support
from ..jax import attention as plain
from ..jax.attention import Tiles, cut
from .attention_kernel import STREAMS, Facts, Shape, attention_kernel
from .calls import COMPUTES, LANES, MIB, SUBLANES, Calls, filled

TILE_LANES = 256
"""Queries times heads of a group that a tile aims at: as many as make a matrix product of a prefill's keys worth their copy."""
TURN_TOKENS = 256
"""Keys of a turn."""
SCORE_VALUES = 1 << 19
"""Of one turn, over all heads of a chunk."""
BUFFER_BYTES = 8 * MIB
"""Of keys and values, in both buffers."""
F32 = jnp.float32


def kernels(calls: Calls) -> list[Kernel]:
    return [Kernel("attention", "pallas.attention", supports, partial(attention, calls))]


def supports(spec: Attention) -> Support:
    if spec.dtype not in COMPUTES:
        return f"dtype {spec.dtype}; the kernel computes in {', '.join(COMPUTES)}"
    return None


class Plan(NamedTuple):
    """How a batch of one shape is laid out for a spec."""

    tile: int
    """Queries of a tile; a power of two."""
    lanes: int
    """Of a tile: its queries times heads of a group, filled up."""
    step: int
    """Blocks of a turn."""
    kv_heads: int
    """Of a chunk."""


def plan(spec: Attention, kv_heads: int, longest_query: int, columns: int, block_tokens: int) -> Plan:
    """columns: of the table of blocks."""
    group = spec.heads.size // spec.kv_heads.size
    most = max(1, TILE_LANES // group)
    tile = min(1 << (most.bit_length() - 1), 1 << (longest_query - 1).bit_length())
    lanes = filled(group * tile, SUBLANES * (1 if spec.dtype == "float32" else 2))
    seen = columns if spec.window is None else min(columns, (tile + spec.window - 2) // block_tokens + 2)
    step = max(1, min(seen, TURN_TOKENS // block_tokens))
    turn = step * block_tokens
    dims = filled(spec.key_dim, LANES) + (0 if spec.latent else filled(spec.value_dim, LANES))
    itemsize = 4 if spec.dtype == "float32" else 2
    most_heads = min(SCORE_VALUES // (lanes * turn), BUFFER_BYTES // (2 * turn * dims * itemsize))
    return Plan(tile, lanes, step, max(size for size in range(1, kv_heads + 1) if kv_heads % size == 0 and size <= max(most_heads, 1)))


def attention(calls: Calls, spec: Attention, q: jax.Array, cell: Any, batch: Batch, sinks: Sequence[jax.Array] | None = None) -> jax.Array:
    """q [tokens, heads, key_dim] -> [tokens, heads, value_dim]; tokens of no row give zeros.

    Blocks that are no whole tiles (of 1 token, say) cannot be copied to their place; jax.numpy computes over those.
    """
    out = jnp.zeros((q.shape[0], spec.heads.size, spec.value_dim), q.dtype)
    if not q.shape[0]:
        return out
    if cell.k.shape[2] % SUBLANES:
        return plain.attention(spec, q, cell, batch, sinks)
    table = batch.groups[cell.group].table
    laid = plan(spec, cell.k.shape[1], batch.shape.longest_query, table.shape[1], cell.k.shape[2])
    tiles = cut(batch, laid.tile)
    made = _call(calls, spec, laid, q.at[tiles.token].get(mode="clip"), tiles, cell, table, sinks)
    return out.at[tiles.token].set(made, mode="drop")


def _call(calls: Calls, spec: Attention, laid: Plan, q: jax.Array, tiles: Tiles, cell: Any, table: jax.Array, sinks: Any) -> jax.Array:
    """q [tiles, tile, heads, key_dim] -> [tiles, tile, heads, value_dim]."""
    count, kv_heads, group = len(q), cell.k.shape[1], spec.heads.size // spec.kv_heads.size
    shape = Shape(
        count, kv_heads // laid.kv_heads, laid.kv_heads, laid.tile, laid.step, cell.k.shape[2], spec.value_dim, spec.scale, spec.window,
        spec.softcap, spec.latent, jax.lax.Precision.HIGHEST if spec.dtype == "float32" else None,
    )
    heads, lanes = laid.kv_heads, laid.lanes

    def packed(values: jax.Array) -> jax.Array:
        """[..., tile, heads, dim] -> [..., kv_heads, lanes, dim]."""
        values = values.reshape(-1, laid.tile, kv_heads, group, values.shape[-1]).transpose(0, 2, 3, 1, 4)
        values = values.reshape(values.shape[0], kv_heads, group * laid.tile, values.shape[-1])
        return jnp.pad(values, ((0, 0), (0, 0), (0, lanes - values.shape[2]), (0, 0)))

    def per_head(values: Any) -> jax.Array:
        """[heads] -> [kv_heads, lanes, 1] float32."""
        spread = jnp.broadcast_to(jnp.asarray(values, F32)[None, :, None], (laid.tile, spec.heads.size, 1))
        return packed(spread)[0]

    facts = _facts(tiles, shape)
    rows = {"table": table[:, None], "next_table": table[:, None]}
    small = {"sinks": None if sinks is None else sinks[0], "slopes": None if spec.alibi is None else np.asarray(spec.alibi, np.float32)}
    vectors = {name: per_head(values) for name, values in small.items() if values is not None}
    streams = {name: getattr(cell, name) for name in STREAMS if hasattr(cell, name)}

    def at_tile(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, heads, lanes, width), lambda tile, chunk, _: (tile, chunk, 0, 0))

    columns = (1, 1, table.shape[1])
    row_of = {
        "table": lambda tile, chunk, facts: (facts[tile], 0, 0),
        "next_table": lambda tile, chunk, facts: (facts[tile + 1], 0, 0),
    }
    names = ("facts", *rows, "q", *vectors, *streams, "out")
    scratch = {
        "semaphores": pltpu.SemaphoreType.DMA((len(streams), 2)),
        **{f"{name}_buffer": pltpu.VMEM((2, heads, shape.turn, array.shape[-1]), array.dtype) for name, array in streams.items()},
    }
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(count, shape.chunks), scratch_shapes=list(scratch.values()),
        in_specs=[
            *(pl.BlockSpec(columns, row_of[name], memory_space=pltpu.SMEM) for name in rows),
            at_tile(spec.key_dim),
            *(pl.BlockSpec((heads, lanes, 1), lambda tile, chunk, _: (chunk, 0, 0)) for _ in vectors),
            *(pl.BlockSpec(memory_space=pl.ANY) for _ in streams),
        ],
        out_specs=at_tile(spec.value_dim),
    )
    out = jax.ShapeDtypeStruct((count, kv_heads, lanes, spec.value_dim), q.dtype)
    call = calls.call(partial(attention_kernel, shape, (*names, *scratch)), grid_spec, out, ("arbitrary", "arbitrary"))
    made = call(facts, *rows.values(), packed(q), *vectors.values(), *streams.values())
    made = made[:, :, : group * laid.tile].reshape(count, kv_heads, group, laid.tile, spec.value_dim)
    return made.transpose(0, 3, 1, 2, 4).reshape(count, laid.tile, spec.heads.size, spec.value_dim)


def _facts(tiles: Tiles, shape: Shape) -> jax.Array:
    """[6 * (tiles + 1)] int32: `Facts` one after the other."""
    counts, first = tiles.used.sum(1), tiles.positions[:, 0]
    last = first + counts - 1
    column = jnp.zeros_like(first) if shape.window is None else jnp.maximum(first - shape.window + 1, 0) // shape.block_tokens
    blocks = jnp.where(counts > 0, last // shape.block_tokens + 1 - column, 0)
    turns = (blocks + shape.step - 1) // shape.step
    facts = Facts(tiles.row, first, last, column, blocks, jnp.cumsum(turns) - turns)
    return jnp.stack([jnp.pad(one, (0, 1)) for one in facts]).astype(jnp.int32).reshape(-1)
