"""Largest first; among equals, the one whose place comes first."""
from __future__ import annotations

import torch
from torch import Tensor


def largest_first(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values, places) along the last dimension. Zeros of both signs are equal, which XLA's sort does not know."""
    ranked = torch.sort(torch.where(values == 0, 0, values), dim=-1, descending=True, stable=True)
    return ranked.values, ranked.indices
