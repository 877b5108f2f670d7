"""write_kv, attention and qkv_rope_write over cells [blocks, kv_heads, block_tokens, dim].

Queries are cut into tiles of one row each (ragged.py), so that prefill, decode and mixed rows are one program. A tile walks
the blocks that its queries can see, some at a time, with a running softmax (Milakov and Gimelshein 2018):

    peak' = max(peak, max s)    total' = total e^(peak - peak') + sum e^(s - peak')    sum' likewise, times values
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ....ops import Attention, Batch, QkvRopeWrite, WriteKV
from .codes import bits, coded, gathered
from .ragged import Tiles, bound, cut
from .rows import rope

TILE_TOKENS = 32
"""Queries of a tile where a step holds more than one token of a row."""
GATHERED_ELEMENTS = 2**25
"""Bound on the keys and values that one turn of the walk gathers."""


def write_kv(spec: WriteKV, k: Tensor, v: Tensor | None, cell: Any, batch: Batch) -> None:
    slots, block_tokens = batch.groups[cell.group].slots, cell.k.shape[-2]
    block, offset = torch.div(slots, block_tokens, rounding_mode="floor"), slots % block_tokens
    for name, given in (("k", k), ("v", v)):
        if given is None:
            continue
        if spec.kv_dtype is not None:
            given, getattr(cell, f"{name}_scale")[block, :, offset] = coded(given, spec.kv_dtype)
        held = getattr(cell, name)
        bits(held)[block, :, offset] = bits(given.to(held.dtype))


def attention(spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Sequence[Tensor] | None = None) -> Tensor:
    """q [tokens, heads, key_dim] -> [tokens, heads, value_dim]; tokens of no row give zeros."""
    tokens, shape = q.shape[0], batch.shape
    out = q.new_zeros(tokens + 1, spec.heads.size, spec.value_dim)
    if not tokens:
        return out[:0]
    tile = 1 if shape.longest_query == 1 else TILE_TOKENS
    counts = batch.starts[1:] - batch.starts[:-1]
    tiles = cut(counts, tile, bound(tokens, shape.rows, shape.longest_query, tile))
    token = (batch.starts[tiles.group][:, None] + tiles.lane).clamp(max=tokens - 1)
    positions = (batch.lengths - counts)[tiles.group][:, None] + tiles.lane
    made = walk(spec, q[token], positions, tiles, cell, batch.groups[cell.group].table, sinks)
    out[torch.where(tiles.used, token, tokens)] = made.to(q.dtype)
    return out[:tokens]


def walk(
    spec: Attention, q: Tensor, positions: Tensor, tiles: Tiles, cell: Any, table: Tensor, sinks: Any,
) -> Tensor:
    """q [tiles, tile, heads, key_dim] -> [tiles, tile, heads, value_dim] in float32."""
    count, tile = positions.shape
    kv_heads, block_tokens = cell.k.shape[1], cell.k.shape[-2]
    group = spec.heads.size // kv_heads
    q = _by_head(q.float(), kv_heads)
    lowest = torch.finfo(torch.float32).min
    peak = q.new_full((count, kv_heads, group, tile), lowest)
    total = torch.zeros_like(peak)
    if sinks is not None:
        peak, total = peak.copy_(sinks[0].float().reshape(kv_heads, group, 1)), total + 1
    summed = q.new_zeros(count, kv_heads, group, tile, spec.value_dim)

    first, width = _seen_columns(spec, positions, table.shape[1], block_tokens)
    step = max(1, GATHERED_ELEMENTS // (count * kv_heads * block_tokens * (spec.key_dim + spec.value_dim)))
    for start in range(0, width, step):
        column = first[:, None] + torch.arange(start, min(start + step, width), device=q.device)
        blocks = table[tiles.group[:, None], column.clamp(max=table.shape[1] - 1)]
        place = (column[:, :, None] * block_tokens + torch.arange(block_tokens, device=q.device)).flatten(1)
        visible = _visible(spec, positions, place) & tiles.used[:, :, None]
        keys = gathered(cell, "k", blocks, spec.kv_dtype)
        values = keys[..., : spec.value_dim] if spec.latent else gathered(cell, "v", blocks, spec.kv_dtype)
        values = values.masked_fill(~visible.any(1)[:, None, :, None], 0)
        scores = torch.matmul(q, keys.transpose(-1, -2)).unflatten(2, (group, tile)) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        if spec.alibi is not None:
            ahead = (place[:, None, :] - positions[:, :, None]).float()[:, None, None]
            scores = scores + _slopes(spec.alibi, q.device).reshape(kv_heads, group, 1, 1) * ahead
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
        higher = torch.maximum(peak, scores.amax(-1))
        weights, fade = torch.exp(scores - higher[..., None]), torch.exp(peak - higher)
        total = total * fade + weights.sum(-1)
        summed = summed * fade[..., None] + torch.matmul(weights.flatten(2, 3), values).unflatten(2, (group, tile))
        peak = higher
    made = summed / total.masked_fill(total == 0, 1)[..., None]
    return made.permute(0, 3, 1, 2, 4).reshape(count, tile, spec.heads.size, spec.value_dim)


def _by_head(q: Tensor, kv_heads: int) -> Tensor:
    """[tiles, tile, heads, dim] -> [tiles, kv_heads, group * tile, dim]."""
    return q.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


@lru_cache(maxsize=64)
def _slopes(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _seen_columns(spec: Attention, positions: Tensor, columns: int, block_tokens: int) -> tuple[Tensor, int]:
    """(first [tiles], how many) table columns that any query of a tile can see."""
    if spec.window is None:
        return torch.zeros_like(positions[:, 0]), columns
    first = torch.div((positions[:, 0] - spec.window + 1).clamp(min=0), block_tokens, rounding_mode="floor")
    return first, min(columns, (positions.shape[1] + spec.window - 2) // block_tokens + 2)


def _visible(spec: Attention, positions: Tensor, place: Tensor) -> Tensor:
    """[tiles, tile, keys]: causal, and within the window."""
    visible = place[:, None, :] <= positions[:, :, None]
    return visible if spec.window is None else visible & (place[:, None, :] > positions[:, :, None] - spec.window)


def qkv_rope_write(spec: QkvRopeWrite, q: Tensor, k: Tensor, v: Tensor, cell: Any, batch: Batch) -> Tensor:
    write_kv(spec.write, rope(spec.key, k, batch), v, cell, batch)
    return rope(spec.query, q, batch)
