"""router and moe: (token, rank) pairs sorted by expert, cut into tiles of one expert each (ragged.py), one batched product."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....ops import Moe, Router
from .arrays import TORCH, tensor
from .ragged import bound, cut
from .rows import FORMULAS

TILE_PAIRS = 32
"""Pairs of a tile, at most."""
GATHERED_ELEMENTS = 2**27
"""Bound on the weights that one batched product gathers."""


def router(spec: Router, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [tokens, experts] -> ids and weights [tokens, top_k]. Gates rise with their logits, so these are sorted."""
    gates = torch.sigmoid(logits) if spec.sigmoid else torch.softmax(logits, dim=-1)
    experts = torch.sort(logits, dim=-1, descending=True, stable=True).indices[..., : spec.top_k]
    weights = gates.gather(-1, experts)
    return experts.int(), weights / weights.sum(-1, keepdim=True) if spec.renormalize else weights


def prepare(device: torch.device, spec: Moe, parts: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """gate over up [experts, 2 * mlp, embed], and down [experts, embed, mlp]."""
    gate, up, down = (tensor(part).to(TORCH[spec.dtype]) for part in parts)
    return torch.cat((gate, up), dim=1).to(device), down.to(device)


def moe(
    spec: Moe, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, weight: Sequence[torch.Tensor], batch: Any,
) -> torch.Tensor:
    """x [tokens, embed] -> [tokens, embed]: each pair is computed in its own place, and a token's pairs are added in order."""
    tokens, pairs = x.shape[0], experts.numel()
    if not tokens:
        return torch.zeros_like(x)
    by_expert = torch.sort(experts.flatten(), stable=True)
    ends = torch.searchsorted(by_expert.values, torch.arange(spec.experts.size, dtype=experts.dtype, device=x.device), right=True)
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    tile = min(TILE_PAIRS, tokens)
    tiles = cut(ends - starts, tile, bound(pairs, spec.experts.size, tokens, tile))
    place = (starts[tiles.group][:, None] + tiles.lane).clamp(max=pairs - 1)
    pair = by_expert.indices[place]
    out = x.new_zeros(pairs + 1, spec.embed)
    step = max(1, GATHERED_ELEMENTS // (3 * spec.mlp.size * spec.embed))
    for start in range(0, len(pair), step):
        part = slice(start, start + step)
        made = _mlp(spec, x[pair[part] // spec.top_k], tiles.group[part], weight)
        out[torch.where(tiles.used[part], pair[part], pairs)] = made
    return (out[:pairs].unflatten(0, (tokens, spec.top_k)).float() * weights[..., None]).sum(1).to(x.dtype)


def _mlp(spec: Moe, x: torch.Tensor, expert: torch.Tensor, weight: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [tiles, tile, embed] through the experts [tiles]."""
    gate, up = torch.bmm(x, weight[0][expert].transpose(1, 2)).float().chunk(2, dim=-1)
    hidden = (FORMULAS[spec.activation](gate) * up).to(x.dtype)
    return torch.bmm(hidden, weight[1][expert].transpose(1, 2))
