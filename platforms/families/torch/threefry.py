"""Threefry-2x32-20 and its uniforms, equal to ops/threefry.py to the bit.

Words are int32, whose sums wrap and whose shifts to the right are masked: several devices lack uint32, and Gaudi computes int64 in 32 bits.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ....ops.threefry import PARITY, ROTATIONS


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two words of random bits for each broadcast (key, counter); int32 and int64 are both read as 32 bits."""
    key0, key1, x0, x1 = (word.int() for word in (*key, *counter))
    keys = (key0, key1, key0 ^ key1 ^ PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | _shifted(x1, 32 - rotation)) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + (group + 1)
    return x0, x1


def _shifted(word: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left. torch_xla divides instead and rounds towards zero, so the bits that fall off go first."""
    return ((word & -(1 << places)) >> places) & ((1 << (32 - places)) - 1)


def uniforms(seed_low: Tensor, seed_high: Tensor, index: Tensor, position: Tensor, vocab: int) -> Tensor:
    """[samples, vocab] float32, from [samples] of each argument: one number per token id, tokens 2i and 2i + 1 of counter i."""
    low, high = threefry((seed_low, seed_high), (index, position))
    pairs = torch.arange((vocab + 1) // 2, dtype=torch.int32, device=low.device)
    bits = threefry((low[:, None], high[:, None]), (pairs[None, :], torch.zeros_like(pairs)))
    mixed = torch.stack(bits, dim=-1).flatten(1)[:, :vocab]
    return (_shifted(mixed, 9).float() + 0.5) * 2.0**-23
