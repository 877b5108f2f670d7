"""Ragged paged attention on a TPU: one program per tile of queries and chunk of KV heads, keys streamed from HBM.

    s = scale q k^T    peak' = max(peak, max s)    total' = total e^(peak - peak') + sum e^(s - peak')    mixed' likewise, times v

                      turn: `step` blocks of keys, each copied by itself
                     +----------------------------+
    lanes: heads of  | s, masked: causal, window  |   for each KV head of the chunk
    a group, queries +----------------------------+

Copies run one turn ahead, into the other of two buffers, and across programs too: the last turn of one starts the first of the next.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

F32 = jnp.float32
LOWEST = float(jnp.finfo(F32).min)
STREAMS = ("k", "v", "k_scale", "v_scale")
"""Arrays of a cell, [blocks, kv_heads, block_tokens, dim], where it has them."""


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for."""

    tiles: int
    chunks: int
    kv_heads: int
    """Of one chunk."""
    tile: int
    """Queries of a tile; a power of two."""
    step: int
    """Blocks of a turn."""
    block_tokens: int
    value_dim: int
    scale: float
    window: int | None
    softcap: float | None
    latent: bool
    precision: jax.lax.Precision | None

    @property
    def turn(self) -> int:
        """Keys of a turn."""
        return self.step * self.block_tokens


class Facts(NamedTuple):
    """Scalars of a tile, each [tiles + 1] on the host; the one behind the last has no blocks."""

    row: Any
    """Whose table of blocks it reads."""
    first: Any
    """Its first query's position."""
    last: Any
    """Its last query's position."""
    column: Any
    """The first of the row's blocks that a query sees."""
    blocks: Any
    """How many blocks its queries see; 0: the tile is unused, as are all behind it."""
    turns: Any
    """Of all tiles before it."""

    @classmethod
    def of(cls, facts: Any, tile: Any, tiles: int) -> Facts:
        """From `facts` [6 * (tiles + 1)] in scalar memory."""
        return cls(*(facts[place * (tiles + 1) + tile] for place in range(len(cls._fields))))


def attention_kernel(shape: Shape, names: tuple[str, ...], *refs: Any) -> None:
    """names: what `refs` are, in order.

    facts [6 * (tiles + 1)]. table, next_table [1, 1, blocks]: of this tile's row, and of the next tile's. q [1, kv_heads, lanes, key_dim].
    sinks, slopes [kv_heads, lanes, 1], where there are any. out [1, kv_heads, lanes, value_dim]. semaphores [streams, 2].
    k_buffer, ... [2, kv_heads, turn, dim].
    """
    ref = dict(zip(names, refs, strict=True))
    tile, chunk = pl.program_id(0), pl.program_id(1)
    here, behind = Facts.of(ref["facts"], tile, shape.tiles), Facts.of(ref["facts"], tile + 1, shape.tiles)
    turns = jax.lax.div(here.blocks + shape.step - 1, shape.step)
    before = here.turns * shape.chunks + chunk * turns
    last_chunk = chunk == shape.chunks - 1

    @pl.when((before == 0) & (turns > 0))
    def first_of_all() -> None:
        _fetch(shape, ref, here, chunk, 0, 0, lambda column: ref["table"][0, 0, column])

    def one_turn(turn: Any, carried: Any) -> Any:
        slot = (before + turn) & 1
        within = turn + 1 < turns
        same = within | ~last_chunk
        ahead = jax.tree.map(lambda a, b: jnp.where(same, a, b), here, behind)

        @pl.when(ahead.blocks > 0)
        def prefetch() -> None:
            def block(column: Any) -> Any:
                return jnp.where(same, ref["table"][0, 0, column], ref["next_table"][0, 0, column])

            next_chunk = jnp.where(within, chunk, jnp.where(last_chunk, 0, chunk + 1))
            _fetch(shape, ref, ahead, next_chunk, jnp.where(within, turn + 1, 0), 1 - slot, block)

        def wait(place: Any) -> None:
            for copy in _copies(shape, ref, 0, 0, slot, place):
                copy.wait()

        _each(_blocks(shape, here, turn), wait)
        return _attend(shape, ref, here, slot, (here.column + turn * shape.step) * shape.block_tokens, carried)

    _, total, mixed = jax.lax.fori_loop(0, turns, one_turn, _start(shape, ref))
    ref["out"][0] = (mixed / jnp.where(total == 0, 1, total)).astype(ref["out"].dtype)


def _blocks(shape: Shape, facts: Facts, turn: Any) -> Any:
    """How many of a turn's blocks are there."""
    return jnp.minimum(facts.blocks - turn * shape.step, shape.step)


def _each(count: Any, act: Callable[[Any], None]) -> None:
    def one(place: Any, carry: Any) -> Any:
        act(place)
        return carry

    jax.lax.fori_loop(0, count, one, 0)


def _fetch(shape: Shape, ref: dict[str, Any], facts: Facts, chunk: Any, turn: Any, slot: Any, block: Callable[[Any], Any]) -> None:
    """Start the copies of one turn; block(column) reads the table."""
    def start(place: Any) -> None:
        for copy in _copies(shape, ref, block(facts.column + turn * shape.step + place), chunk, slot, place):
            copy.start()

    _each(_blocks(shape, facts, turn), start)


def _copies(shape: Shape, ref: dict[str, Any], block: Any, chunk: Any, slot: Any, place: Any) -> list[Any]:
    """A chunk's heads of one block to its place in the turn: a copy for each array of the cell."""
    heads = pl.ds(chunk * shape.kv_heads, shape.kv_heads)
    to = pl.ds(pl.multiple_of(place * shape.block_tokens, shape.block_tokens), shape.block_tokens)
    return [
        pltpu.make_async_copy(ref[name].at[block, heads], ref[f"{name}_buffer"].at[slot, :, to, :], ref["semaphores"].at[number, slot])
        for number, name in enumerate(name for name in STREAMS if name in ref)
    ]


def _start(shape: Shape, ref: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(peak, total, mixed) before any key: nothing seen, or each head's sink."""
    lanes = (shape.kv_heads, ref["q"].shape[2], 1)
    mixed = jnp.zeros((*lanes[:2], shape.value_dim), F32)
    if "sinks" in ref:
        return ref["sinks"][...], jnp.ones(lanes, F32), mixed
    return jnp.full(lanes, LOWEST, F32), jnp.zeros(lanes, F32), mixed


def _attend(shape: Shape, ref: dict[str, Any], facts: Facts, slot: Any, begin: Any, carried: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """One turn's keys, from position `begin` on, into (peak, total, mixed)."""
    peak, total, mixed = carried
    q = ref["q"][0]
    grid = (q.shape[1], shape.turn)
    query = facts.first + (jax.lax.broadcasted_iota(jnp.int32, grid, 0) & (shape.tile - 1))
    place = begin + jax.lax.broadcasted_iota(jnp.int32, grid, 1)
    visible = place <= jnp.minimum(query, facts.last)
    visible = visible if shape.window is None else visible & (place > query - shape.window)

    keys, values = _keys_values(shape, ref, slot, begin, facts)
    scores = jax.lax.dot_general(q, keys.astype(q.dtype), (((2,), (2,)), ((0,), (0,))), shape.precision, F32) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * jnp.tanh(scores / shape.softcap)
    if "slopes" in ref:
        scores = scores + ref["slopes"][...] * (place - query).astype(F32)[None]
    scores = jnp.where(visible[None], scores, -jnp.inf)
    higher = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
    weights, fade = jnp.exp(scores - higher), jnp.exp(peak - higher)
    new = jax.lax.dot_general(weights.astype(q.dtype), values.astype(q.dtype), (((2,), (1,)), ((0,), (0,))), shape.precision, F32)
    return higher, total * fade + jnp.sum(weights, axis=-1, keepdims=True), mixed * fade + new


def _keys_values(shape: Shape, ref: dict[str, Any], slot: Any, begin: Any, facts: Facts) -> tuple[Any, Any]:
    """[kv_heads, turn, dim] each, decoded. A value that no query of the tile sees is zero: it may have been NaN."""
    source = "k" if shape.latent else "v"
    lowest = 0 if shape.window is None else facts.first - shape.window + 1

    def seen(width: int) -> Any:
        place = begin + jax.lax.broadcasted_iota(jnp.int32, (1, shape.turn, width), 1)
        return (place <= facts.last) & (place >= lowest)

    if "k_scale" in ref:
        decoded = {name: ref[f"{name}_buffer"][slot].astype(F32) * ref[f"{name}_scale_buffer"][slot] for name in {"k", source}}
        return decoded["k"], jnp.where(seen(shape.value_dim), decoded[source][..., : shape.value_dim], 0)

    buffer = ref[f"{source}_buffer"]

    @pl.when((begin + shape.turn - 1 > facts.last) | (begin < lowest))
    def clear() -> None:
        buffer[slot] = jnp.where(seen(buffer.shape[-1]), buffer[slot].astype(F32), 0).astype(buffer.dtype)

    keys = ref["k_buffer"][slot]
    return keys, (keys if shape.latent else buffer[slot])[..., : shape.value_dim]
