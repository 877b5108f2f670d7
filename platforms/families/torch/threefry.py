"""Threefry-2x32-20 and its uniforms, equal to ops/threefry.py to the bit.

Words are int64 with the high half masked off: no device lacks that, and several lack uint32 arithmetic.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ....ops.threefry import PARITY, ROTATIONS

MASK = 0xFFFFFFFF


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two words of random bits for each broadcast (key, counter); int32 and int64 are both read as 32 bits."""
    key0, key1, x0, x1 = (word.long() & MASK for word in (*key, *counter))
    keys = (key0, key1, key0 ^ key1 ^ PARITY)
    x0, x1 = (x0 + keys[0]) & MASK, (x1 + keys[1]) & MASK
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = (x0 + x1) & MASK
            x1 = (((x1 << rotation) & MASK) | (x1 >> (32 - rotation))) ^ x0
        x0 = (x0 + keys[(group + 1) % 3]) & MASK
        x1 = (x1 + keys[(group + 2) % 3] + (group + 1)) & MASK
    return x0, x1


def uniforms(seed_low: Tensor, seed_high: Tensor, index: Tensor, position: Tensor, vocab: int) -> Tensor:
    """[samples, vocab] float32, from [samples] of each argument: one number per token id, tokens 2i and 2i + 1 of counter i."""
    low, high = threefry((seed_low, seed_high), (index, position))
    pairs = torch.arange((vocab + 1) // 2, device=low.device)
    bits = threefry((low[:, None], high[:, None]), (pairs[None, :], torch.zeros_like(pairs)))
    mixed = torch.stack(bits, dim=-1).flatten(1)[:, :vocab]
    return ((mixed >> 9).float() + 0.5) * 2.0**-23
