"""Ragged paged attention on a TPU: one program per tile of queries and chunk of KV heads, keys streamed from HBM.

    s = scale q k^T    peak' = max(peak, max s)    total' = total e^(peak - peak') + sum e^(s - peak')    acc' likewise, times v

                      turn: `step` blocks of keys, copied one by one
                     +----------------------------+
    lanes: queries   | s, masked: causal, window  |   of each KV head of the chunk
    x heads of group +----------------------------+

A tile holds queries of one row, each with all heads of a group, as lanes (head of group, query). Copies run one turn ahead, into the
other of two buffers, across programs too: the last turn of one starts the first of the next.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

F32 = jnp.float32
LOWEST = float(jnp.finfo(F32).min)


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


@dataclass(frozen=True)
class Stream:
    """One array of the cell, and where its blocks go."""

    held: Any
    """[blocks, kv_heads, block_tokens, dim] in HBM."""
    buffer: Any
    """[2, heads of a chunk, turn, dim] in VMEM."""
    semaphores: Any
    """[2]."""

    def copy(self, shape: Shape, block: Any, chunk: Any, slot: Any, place: Any) -> Any:
        """Of one block, to its place in the turn."""
        to = pl.ds(pl.multiple_of(place * shape.block_tokens, shape.block_tokens), shape.block_tokens)
        source = self.held.at[block, pl.ds(chunk * shape.kv_heads, shape.kv_heads)]
        return pltpu.make_async_copy(source, self.buffer.at[slot, :, to, :], self.semaphores.at[slot])


def attention_kernel(shape: Shape, names: tuple[str, ...], *refs: Any) -> None:
    """names: what `refs` are, in order; those of absent features are left out.

    rows, first, count [tiles + 1]: a tile's row, its first query's position, and how many queries it has; 0: none, as all behind it.
    table, next_table [1, 1, blocks]: of this tile's row, and of the next tile's. q [1, kv_heads, lanes, key_dim].
    sinks, slopes [kv_heads, lanes, 1]. out [1, kv_heads, lanes, value_dim]. next_slot [1]: the buffer that the next turn finds its keys in.
    """
    ref = dict(zip(names, refs, strict=True))
    streams = {name: Stream(ref[name], ref[f"{name}_buffer"], ref[f"{name}_semaphores"]) for name in ("k", "v", "k_scale", "v_scale") if name in ref}
    tile, chunk = pl.program_id(0), pl.program_id(1)
    _, start, turns = _range(shape, ref, tile)
    last_chunk = chunk == shape.chunks - 1
    following = jnp.where(last_chunk, tile + 1, tile)
    followed = (following < shape.tiles) & (ref["count"][following] > 0)

    @pl.when((tile == 0) & (chunk == 0) & (turns > 0))
    def first_of_all() -> None:
        ref["next_slot"][0] = 0
        _fetch(shape, ref, streams, ref["table"], tile, chunk, 0, 0)

    ref["total"][...] = jnp.full_like(ref["total"], 0 if "sinks" not in ref else 1)
    ref["peak"][...] = jnp.full_like(ref["peak"], LOWEST) if "sinks" not in ref else ref["sinks"][...]
    ref["summed"][...] = jnp.zeros_like(ref["summed"])

    def one_turn(turn: Any, slot: Any) -> Any:
        @pl.when(turn + 1 < turns)
        def ahead() -> None:
            _fetch(shape, ref, streams, ref["table"], tile, chunk, turn + 1, 1 - slot)

        @pl.when((turn + 1 == turns) & followed & ~last_chunk)
        def next_chunk() -> None:
            _fetch(shape, ref, streams, ref["table"], tile, chunk + 1, 0, 1 - slot)

        @pl.when((turn + 1 == turns) & followed & last_chunk)
        def next_tile() -> None:
            _fetch(shape, ref, streams, ref["next_table"], tile + 1, 0, 0, 1 - slot)

        for stream in streams.values():
            _each(_blocks(shape, ref, tile, turn), lambda place, stream=stream: stream.copy(shape, 0, 0, slot, place).wait())
        _attend(shape, ref, tile, slot, (start + turn * shape.step) * shape.block_tokens)
        return 1 - slot

    @pl.when(turns > 0)
    def all_turns() -> None:
        ref["next_slot"][0] = jax.lax.fori_loop(0, turns, one_turn, ref["next_slot"][0])

    total = ref["total"][...]
    ref["out"][0] = (ref["summed"][...] / jnp.where(total == 0, 1, total)).astype(ref["out"].dtype)


def _range(shape: Shape, ref: dict[str, Any], tile: Any) -> tuple[Any, Any, Any]:
    """(the last query's position, the first column of the table that a query sees, turns) of a tile."""
    first, count = ref["first"][tile], ref["count"][tile]
    last = first + count - 1
    start = 0 if shape.window is None else jax.lax.div(jnp.maximum(first - shape.window + 1, 0), shape.block_tokens)
    columns = jax.lax.div(last, shape.block_tokens) + 1 - start
    return last, start, jnp.where(count > 0, jax.lax.div(columns + shape.step - 1, shape.step), 0)


def _blocks(shape: Shape, ref: dict[str, Any], tile: Any, turn: Any) -> Any:
    """How many of a turn's blocks its tile sees."""
    last, start, _ = _range(shape, ref, tile)
    return jnp.minimum(jax.lax.div(last, shape.block_tokens) + 1 - start - turn * shape.step, shape.step)


def _fetch(shape: Shape, ref: dict[str, Any], streams: dict[str, Stream], table: Any, tile: Any, chunk: Any, turn: Any, slot: Any) -> None:
    column = _range(shape, ref, tile)[1] + turn * shape.step

    def block(place: Any) -> None:
        found = table[0, 0, column + place]
        for stream in streams.values():
            stream.copy(shape, found, chunk, slot, place).start()

    _each(_blocks(shape, ref, tile, turn), block)


def _each(count: Any, act: Any) -> None:
    jax.lax.fori_loop(0, count, lambda place, carry: (act(place), carry)[1], 0)


def _attend(shape: Shape, ref: dict[str, Any], tile: Any, slot: Any, begin: Any) -> None:
    """One turn's keys, from position `begin` on, into peak, total and summed."""
    lanes = ref["q"].shape[2]
    first, last = ref["first"][tile], ref["first"][tile] + ref["count"][tile] - 1
    lowest = 0 if shape.window is None else first - shape.window + 1
    dtype = ref["q"].dtype
    query = first + (jax.lax.broadcasted_iota(jnp.int32, (lanes, shape.turn), 0) & (shape.tile - 1))
    place = begin + jax.lax.broadcasted_iota(jnp.int32, (lanes, shape.turn), 1)
    visible = (place <= query) & (place <= last)
    visible = visible if shape.window is None else visible & (place > query - shape.window)

    keys, values = _keys_values(shape, ref, slot, begin, lowest, last)
    scores = jax.lax.dot_general(ref["q"][0], keys.astype(dtype), (((2,), (2,)), ((0,), (0,))), shape.precision, F32) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * jnp.tanh(scores / shape.softcap)
    if "slopes" in ref:
        scores = scores + ref["slopes"][...] * (place - query).astype(F32)[None]
    scores = jnp.where(visible[None], scores, -jnp.inf)
    peak = ref["peak"][...]
    higher = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
    weights, fade = jnp.exp(scores - higher), jnp.exp(peak - higher)
    mixed = jax.lax.dot_general(weights.astype(dtype), values.astype(dtype), (((2,), (1,)), ((0,), (0,))), shape.precision, F32)
    ref["peak"][...] = higher
    ref["total"][...] = ref["total"][...] * fade + jnp.sum(weights, axis=-1, keepdims=True)
    ref["summed"][...] = ref["summed"][...] * fade + mixed


def _keys_values(shape: Shape, ref: dict[str, Any], slot: Any, begin: Any, lowest: Any, last: Any) -> tuple[Any, Any]:
    """[kv_heads, turn, dim] each, decoded. A value that no query of the tile sees is zero: it may have been NaN."""
    source = "k" if shape.latent else "v"

    def seen(width: int) -> Any:
        place = begin + jax.lax.broadcasted_iota(jnp.int32, (1, shape.turn, width), 1)
        return (place <= last) & (place >= lowest)

    if "k_scale" in ref:
        decoded = {name: ref[f"{name}_buffer"][slot].astype(F32) * ref[f"{name}_scale_buffer"][slot] for name in ("k", source)}
        values = decoded[source][..., : shape.value_dim]
        return decoded["k"], jnp.where(seen(shape.value_dim), values, 0)

    buffer = ref[f"{source}_buffer"]

    @pl.when((begin + shape.turn - 1 > last) | (begin < lowest))
    def clear() -> None:
        buffer[slot] = jnp.where(seen(buffer.shape[-1]), buffer[slot].astype(F32), 0).astype(buffer.dtype)

    return ref["k_buffer"][slot], buffer[slot][..., : shape.value_dim]
