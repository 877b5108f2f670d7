"""write_kv, attention and qkv_rope_write over cells [blocks, kv_heads, block_tokens, dim], with static shapes.

Queries are cut into tiles of one row each (`cut`), so that prefill, decode and mixed rows are one program. A tile walks the
blocks that its queries can see, some at a time, with a running softmax (Milakov and Gimelshein 2018):

    peak' = max(peak, max s)    total' = total e^(peak - peak') + sum e^(s - peak')    sum' likewise, times values
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ....ops import Attention, Batch, QkvRopeWrite, WriteKV
from .codes import coded, gathered
from .rows import F32, HIGHEST, rope

TILE_TOKENS = 32
"""Queries of a tile where a step holds more than one token of a row."""
TURN_TOKENS = 256
"""Keys of one turn of the walk."""


class Tiles(NamedTuple):
    """Queries, `tile` of one row together."""

    row: jax.Array
    """[tiles] the row that a tile belongs to."""
    token: jax.Array
    """[tiles, tile] each query's place among the step's tokens; past the end where unused."""
    positions: jax.Array
    """[tiles, tile]."""
    used: jax.Array
    """[tiles, tile]."""


def cut(batch: Batch, tile: int) -> Tiles:
    """Every row's tokens in tiles of so many; the shape alone bounds how many tiles there can be."""
    shape = batch.shape
    count = min(shape.rows * -(-shape.longest_query // tile), (shape.tokens + shape.rows * (tile - 1)) // tile, shape.tokens)
    counts = batch.starts[1:] - batch.starts[:-1]
    needed = (counts + tile - 1) // tile
    ends = jnp.cumsum(needed)
    index = jnp.arange(count)
    row = jnp.minimum(jnp.searchsorted(ends, index, side="right"), shape.rows - 1)
    lane = ((index - (ends - needed)[row]) * tile)[:, None] + jnp.arange(tile)
    used = lane < counts[row][:, None]
    token = jnp.where(used, batch.starts[row][:, None] + lane, shape.tokens)
    return Tiles(row, token, (batch.lengths - counts)[row][:, None] + lane, used)


def write_kv(spec: WriteKV, k: jax.Array, v: jax.Array | None, cell: Any, batch: Batch) -> None:
    """Rebinds the cell's arrays; the step that is compiled collects them."""
    block, offset = jnp.divmod(batch.groups[cell.group].slots, cell.k.shape[-2])
    for name, given in (("k", k), ("v", v)):
        if given is None:
            continue
        parts = {name: given}
        if spec.kv_dtype is not None:
            parts[name], parts[f"{name}_scale"] = coded(given, spec.kv_dtype)
        for part, array in parts.items():
            held = getattr(cell, part)
            setattr(cell, part, held.at[block, :, offset].set(array.astype(held.dtype)))


def attention(spec: Attention, q: jax.Array, cell: Any, batch: Batch, sinks: Sequence[jax.Array] | None = None) -> jax.Array:
    """q [tokens, heads, key_dim] -> [tokens, heads, value_dim]; tokens of no row give zeros."""
    out = jnp.zeros((q.shape[0], spec.heads.size, spec.value_dim), q.dtype)
    if not q.shape[0]:
        return out
    tiles = cut(batch, 1 if batch.shape.longest_query == 1 else min(TILE_TOKENS, batch.shape.tokens))
    made = _walk(spec, q.at[tiles.token].get(mode="clip"), tiles, cell, batch.groups[cell.group].table, sinks)
    return out.at[tiles.token].set(made.astype(q.dtype), mode="drop")


def _walk(spec: Attention, q: jax.Array, tiles: Tiles, cell: Any, table: jax.Array, sinks: Any) -> jax.Array:
    """q [tiles, tile, heads, key_dim] -> [tiles, tile, heads, value_dim] in float32."""
    count, tile = tiles.positions.shape
    kv_heads, block_tokens = cell.k.shape[1], cell.k.shape[-2]
    group = spec.heads.size // kv_heads
    q = q.reshape(count, tile, kv_heads, group, spec.key_dim)
    first, width = _seen_columns(spec, tiles.positions, table.shape[1], block_tokens)
    step = max(1, min(width, TURN_TOKENS // block_tokens))

    def turn(carry: tuple[jax.Array, jax.Array, jax.Array], start: jax.Array) -> tuple[Any, None]:
        peak, total, summed = carry
        column = first[:, None] + start + jnp.arange(step)
        blocks = table[tiles.row[:, None], jnp.minimum(column, table.shape[1] - 1)]
        place = (column[:, :, None] * block_tokens + jnp.arange(block_tokens)).reshape(count, -1)
        visible = _visible(spec, tiles.positions, place) & tiles.used[:, :, None]
        keys = gathered(cell, "k", blocks, spec.kv_dtype)
        values = keys[..., : spec.value_dim] if spec.latent else gathered(cell, "v", blocks, spec.kv_dtype)
        values = jnp.where(visible.any(1)[:, None, :, None], values, 0)
        scores = jnp.einsum("ntkgd,nksd->nkgts", q, keys.astype(q.dtype), precision=HIGHEST, preferred_element_type=F32)
        scores = scores * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * jnp.tanh(scores / spec.softcap)
        if spec.alibi is not None:
            slopes = np.asarray(spec.alibi, np.float32).reshape(kv_heads, group, 1, 1)
            scores = scores + slopes * (place[:, None, :] - tiles.positions[:, :, None]).astype(F32)[:, None, None]
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        higher = jnp.maximum(peak, scores.max(-1))
        weights, fade = jnp.exp(scores - higher[..., None]), jnp.exp(peak - higher)
        mixed = jnp.einsum("nkgts,nksd->nkgtd", weights, values.astype(F32), precision=HIGHEST)
        return (higher, total * fade + weights.sum(-1), summed * fade[..., None] + mixed), None

    (_, total, summed), _ = jax.lax.scan(turn, _start(spec, (count, kv_heads, group, tile), sinks), jnp.arange(0, width, step))
    made = summed / jnp.where(total == 0, 1, total)[..., None]
    return made.transpose(0, 3, 1, 2, 4).reshape(count, tile, spec.heads.size, spec.value_dim)


def _start(spec: Attention, shape: tuple[int, ...], sinks: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(peak, total, sum) before any key: nothing seen, or each head's sink."""
    summed = jnp.zeros((*shape, spec.value_dim), F32)
    if sinks is None:
        return jnp.full(shape, jnp.finfo(F32).min, F32), jnp.zeros(shape, F32), summed
    sink = sinks[0].astype(F32).reshape(shape[1], shape[2], 1)
    return jnp.broadcast_to(sink, shape), jnp.ones(shape, F32), summed


def _seen_columns(spec: Attention, positions: jax.Array, columns: int, block_tokens: int) -> tuple[jax.Array, int]:
    """(first [tiles], how many) table columns that any query of a tile can see."""
    if spec.window is None:
        return jnp.zeros_like(positions[:, 0]), columns
    first = jnp.maximum(positions[:, 0] - spec.window + 1, 0) // block_tokens
    return first, min(columns, (positions.shape[1] + spec.window - 2) // block_tokens + 2)


def _visible(spec: Attention, positions: jax.Array, place: jax.Array) -> jax.Array:
    """[tiles, tile, keys]: causal, and within the window."""
    visible = place[:, None, :] <= positions[:, :, None]
    return visible if spec.window is None else visible & (place[:, None, :] > positions[:, :, None] - spec.window)


def qkv_rope_write(spec: QkvRopeWrite, q: jax.Array, k: jax.Array, v: jax.Array, cell: Any, batch: Batch) -> jax.Array:
    write_kv(spec.write, rope(spec.key, k, batch), v, cell, batch)
    return rope(spec.query, q, batch)
