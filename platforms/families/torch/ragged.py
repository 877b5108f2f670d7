"""Ragged groups (rows of tokens, tokens of an expert) cut into equal tiles, with sizes that the host knows beforehand.

    group 0      group 1   group 2 (empty)   group 3
    [aaaa][aa--] [bbb-]                      [dddd]        tile = 4, five tiles bound, four used

The device finds out which tile lies where; the host only bounds their number, and so never waits.
"""
from __future__ import annotations

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Of `count` tiles with `tile` lanes each."""

    group: torch.Tensor
    """[count] the group that a tile belongs to."""
    lane: torch.Tensor
    """[count, tile] each lane's place within its group."""
    used: torch.Tensor
    """[count, tile] whether the group is that long."""


def cut(lengths: torch.Tensor, tile: int, count: int) -> Tiles:
    """Tiles of groups with `lengths` [groups]; `count` comes from `bound`."""
    needed = torch.div(lengths + (tile - 1), tile, rounding_mode="floor")
    ends = needed.cumsum(0)
    index = torch.arange(count, device=lengths.device)
    group = torch.searchsorted(ends, index, right=True).clamp(max=len(lengths) - 1)
    first = (index - (ends - needed)[group]) * tile
    lane = first[:, None] + torch.arange(tile, device=lengths.device)
    return Tiles(group, lane, lane < lengths[group][:, None])


def bound(elements: int, groups: int, longest: int, tile: int) -> int:
    """How many tiles `elements` can need in so many groups, none longer than `longest`."""
    return min(groups * -(-longest // tile), (elements + groups * (tile - 1)) // tile, elements)
