"""router and moe: (token, rank) pairs sorted by expert, cut into tiles of one expert each (ragged.py), one batched product."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....ops import Moe, Router
from .arrays import TORCH, tensor
from .linear import for_product
from .order import largest_first
from .ragged import bound, cut
from .rows import FORMULAS

TILE_PAIRS = 32
"""Pairs of a tile, at most."""
GATHERED_ELEMENTS = 2**27
"""Bound on the weights that one batched product gathers."""


def router(spec: Router, logits: torch.Tensor, bias: Sequence[torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [tokens, experts] -> ids and weights [tokens, top_k]. Without a bias gates rise with their logits, so these are sorted."""
    gates = torch.sigmoid(logits) if spec.sigmoid else torch.softmax(logits, dim=-1)
    ranks = logits if bias is None else _ranks(spec, gates + bias[0])
    experts = largest_first(ranks)[1][..., : spec.top_k]
    weights = gates.gather(-1, experts)
    weights = weights / weights.sum(-1, keepdim=True) if spec.renormalize else weights
    return experts.int(), weights if spec.scale is None else weights * spec.scale


def _ranks(spec: Router, biased: torch.Tensor) -> torch.Tensor:
    """Biased gates [tokens, experts], and -inf in groups that are not kept."""
    if spec.groups is None:
        return biased
    grouped = biased.unflatten(-1, (spec.groups, -1))
    scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    dropped = largest_first(scores)[1][..., spec.top_groups :]
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, dropped, True)
    return grouped.masked_fill(mask[..., None], -torch.inf).flatten(-2)


def prepare(device: torch.device, spec: Moe, parts: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """gate over up [experts, 2 * mlp, embed], and down [experts, embed, mlp]; then their biases, alike."""
    placed = [tensor(part).to(TORCH[spec.dtype]) for part in parts]
    triples = [placed[:3], placed[3:]] if spec.bias else [placed]
    return tuple(one.to(device) for gate, up, down in triples for one in (torch.cat((gate, up), dim=1), down))


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
        made = mlp(spec, x[pair[part] // spec.top_k], tiles.group[part], weight)
        out[torch.where(tiles.used[part], pair[part], pairs)] = made
    return (out[:pairs].unflatten(0, (tokens, spec.top_k)).float() * weights[..., None]).sum(1).to(x.dtype)


def mlp(spec: Moe, x: torch.Tensor, expert: torch.Tensor | slice, weight: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [tiles, tile, embed] through the experts [tiles], or through those of a slice."""
    gate, up = _linear(x, expert, weight[0::2]).float().chunk(2, dim=-1)
    return _linear(_gated(spec, gate, up).to(x.dtype), expert, weight[1::2])


def _linear(x: torch.Tensor, expert: torch.Tensor | slice, weight: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [tiles, tile, input] by a weight [experts, output, input], and a bias [experts, output] if there is one."""
    wide, *bias = (for_product(part[expert]) for part in weight)
    columns = wide.transpose(1, 2)
    made = torch.baddbmm(bias[0][:, None], for_product(x), columns) if bias else torch.bmm(for_product(x), columns)
    return made.to(x.dtype)


def _gated(spec: Moe, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if spec.limit is None or spec.alpha is None:
        return FORMULAS[spec.activation](gate) * up
    gate, up = gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    return gate * torch.sigmoid(spec.alpha * gate) * (up + 1)
