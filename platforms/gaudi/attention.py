"""Attention in static shapes: decode with a tile for each token, anything else in tiles of 128 queries of one row.

The family's (families/torch/attention.py) searches tiles and scatters answers; here each place is counted out and picked:

    starts 0 5 6      row 0: tile 0 [aaaa] tile 1 [a---]      row 1: tile 2 [b---]
    token 4 (row 0) -> its row's first tile + 4 // tile, lane 4 % tile

The walk over the padded block table, with its running softmax, is the family's: its turns are as many as the shapes say.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops import Attention, Batch
from ..families.torch.attention import walk
from ..families.torch.ragged import Tiles, bound

TILE_TOKENS = 128
"""Queries of a tile: a side of the matrix engine's."""


def attention(spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Sequence[Tensor] | None = None) -> Tensor:
    """q [tokens, heads, key_dim] -> [tokens, heads, value_dim]; tokens of no row give zeros."""
    if not len(q):
        return q.new_zeros(0, spec.heads.size, spec.value_dim)
    made = (_decode if batch.shape.longest_query == 1 else _prefill)(spec, q, cell, batch, sinks)
    return made.masked_fill(~_used(q, batch)[:, None, None], 0).to(q.dtype)


def _used(q: Tensor, batch: Batch) -> Tensor:
    """[tokens]: padding lies behind the last row's tokens."""
    return torch.arange(len(q), dtype=torch.int32, device=q.device) < batch.starts[-1]


def _decode(spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Any) -> Tensor:
    lane = torch.zeros(len(q), 1, dtype=torch.int32, device=q.device)
    tiles = Tiles(batch.row, lane, _used(q, batch)[:, None])
    positions = batch.lengths.index_select(0, batch.row)[:, None] - 1
    return walk(spec, q[:, None], positions, tiles, cell, batch.groups[cell.group].table, sinks)[:, 0]


def _prefill(spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Any) -> Tensor:
    tokens, shape = len(q), batch.shape
    tile = min(TILE_TOKENS, tokens)
    counts = batch.starts[1:] - batch.starts[:-1]
    needed = torch.div(counts + (tile - 1), tile, rounding_mode="floor")
    ends = needed.cumsum(0, dtype=torch.int32)
    index = torch.arange(bound(tokens, shape.rows, shape.longest_query, tile), dtype=torch.int32, device=q.device)
    row = (index[:, None] >= ends).sum(1, dtype=torch.int32).clamp(max=shape.rows - 1)
    first = (index - (ends - needed)[row]) * tile
    lane = first[:, None] + torch.arange(tile, dtype=torch.int32, device=q.device)
    tiles = Tiles(row, lane, lane < counts[row][:, None])

    token = (batch.starts[row][:, None] + lane).clamp(max=tokens - 1)
    positions = (batch.lengths - counts)[row][:, None] + lane
    made = walk(spec, q[token], positions, tiles, cell, batch.groups[cell.group].table, sinks).flatten(0, 1)

    offset = torch.arange(tokens, dtype=torch.int32, device=q.device) - batch.starts[batch.row]
    place = ((ends - needed)[batch.row] * tile + offset).clamp(0, len(made) - 1)
    return made.index_select(0, place)
