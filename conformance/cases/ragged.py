"""Ragged rows over paged memory: who queries how much behind how much context, and where its blocks lie."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ops import BatchShape, Dim, Packed, StateGroup, WriteKV, empty
from ...ops.attention import coded
from ..problem import Array, Paged
from .make import values

ORDERS = ("ascending", "descending", "scattered", "interleaved")


@dataclass(frozen=True)
class Ragged:
    """A step's rows and their memory. rows: (queries, context before them) of each."""

    packed: Packed
    paged: Paged
    rows: tuple[tuple[int, int], ...]

    def tokens(self, row: int) -> slice:
        first = sum(queries for queries, _ in self.rows[:row])
        return slice(first, first + self.rows[row][0])


def ragged(
    random: np.random.Generator,
    rows: Sequence[tuple[int, int]],
    *,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    block_tokens: int,
    dtype: str,
    window: int | None = None,
    order: str = "scattered",
    spare: int = 3,
    padding: tuple[int, int] = (0, 0),
    kv_dtype: str | None = None,
    latent: bool = False,
) -> Ragged:
    """Live memory is what the rows may read after the step; blocks wholly behind a window have table entry 0.

    padding: tokens and rows behind the real ones, as a platform with static shapes gets them. kv_dtype, latent: as in `WriteKV`.
    """
    lengths = [queries + context for queries, context in rows]
    needs = [-(-length // block_tokens) for length in lengths]
    count = 1 + sum(needs) + spare
    ids = _order(order, needs, spare, random)
    width = max([*needs, 1])
    total = sum(queries for queries, _ in rows)
    more_tokens, more_rows = padding
    packed, batch, _ = empty(BatchShape(total + more_tokens, len(rows) + more_rows, 1, (width,), max(queries for queries, _ in rows)))
    live = np.zeros((count, block_tokens), bool)
    written = np.zeros((count, block_tokens), bool)
    at = 0
    for r, (queries, context) in enumerate(rows):
        length = lengths[r]
        first = 0 if window is None else max(0, context - window + 1)
        kept = np.arange(needs[r]) >= first // block_tokens if length else np.zeros(0, bool)
        batch.groups[0].table[r, : needs[r]] = np.where(kept, ids[r], 0)
        positions = np.arange(length)
        blocks, offsets = np.asarray(ids[r], int)[positions // block_tokens], positions % block_tokens
        seen = positions >= first
        live[blocks[seen], offsets[seen]] = True
        new = positions >= context
        written[blocks[new], offsets[new]] = True
        batch.positions[at : at + queries] = np.arange(context, length)
        batch.row[at : at + queries] = r
        batch.groups[0].slots[at : at + queries] = (blocks * block_tokens + offsets)[context:]
        at += queries
        batch.starts[r + 1], batch.lengths[r], batch.slot[r] = at, length, r + 1
    batch.starts[len(rows) + 1 :] = total
    batch.row[total:] = min(len(rows), len(rows) + more_rows - 1)
    batch.source[:] = -1
    cell = WriteKV(kv_heads=Dim(kv_heads), key_dim=key_dim, value_dim=value_dim, dtype=dtype, kv_dtype=kv_dtype, latent=latent)
    group = StateGroup("full", (0,), cell.arrays, window=window, block_tokens=block_tokens)
    return Ragged(packed, Paged(group, _memory(random, cell, (count, kv_heads, block_tokens)), live, written), tuple(rows))


def _memory(random: np.random.Generator, cell: WriteKV, shape: tuple[int, int, int]) -> dict[str, Array]:
    """The cell's arrays, shape [blocks, kv_heads, block_tokens] and a dim each; the scales of codes lie far apart."""
    arrays: dict[str, Array] = {}
    for name, dim in (("k", cell.key_dim),) if cell.latent else (("k", cell.key_dim), ("v", cell.value_dim)):
        arrays[name] = values(random, (*shape, dim), cell.dtype)
        if cell.kv_dtype is not None:
            spread = np.exp2(random.uniform(-2, 2, (*shape, 1)))
            arrays[name], arrays[f"{name}_scale"] = coded(arrays[name] * spread, cell.kv_dtype)
    return arrays


def _order(order: str, needs: Sequence[int], spare: int, random: np.random.Generator) -> list[list[int]]:
    """Each row's block ids; block 0 is nobody's."""
    total = sum(needs)
    ids = list(range(1, 1 + total + spare))
    if order == "descending":
        ids.reverse()
    elif order == "scattered":
        ids = [int(block) for block in random.permutation(ids)]
    if order == "interleaved":
        turns = sorted((place, row) for row, need in enumerate(needs) for place in range(need))
        made: list[list[int]] = [[] for _ in needs]
        for block, (_, row) in zip(ids, turns, strict=False):
            made[row].append(block)
        return made
    taken = iter(ids)
    return [[next(taken) for _ in range(need)] for need in needs]
