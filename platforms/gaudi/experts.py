"""moe in static shapes: every expert over every token, so that no weight is gathered and nothing is sorted."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops import Batch, Moe
from ..families.torch.experts import mlp

BETWEEN_ELEMENTS = 2**26
"""Bound on what stands between the linears of the experts that are computed at once."""


def moe(spec: Moe, x: Tensor, experts: Tensor, weights: Tensor, weight: Sequence[Tensor], batch: Batch) -> Tensor:
    """x [tokens, embed] -> [tokens, embed]; experts and weights [tokens, top_k]. What an expert was not chosen for counts nothing."""
    count = spec.experts.size
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    step = max(1, BETWEEN_ELEMENTS // max(1, len(x) * (2 * spec.mlp.size + spec.embed)))
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        ids = torch.arange(part.start, part.stop, dtype=experts.dtype, device=x.device)
        chosen = experts == ids[:, None, None]
        share = torch.where(chosen, weights, 0).sum(-1)
        made = mlp(spec, x.expand(len(ids), *x.shape), part, weight).float()
        total = total + torch.where(chosen.any(-1)[..., None], made * share[..., None], 0).sum(0)
    return total.to(x.dtype)
