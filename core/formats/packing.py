"""Codes of four and eight bits out of the words that hold several."""
from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nibbles(packed: Array) -> Array:
    """packed [..., n] of bytes -> [..., 2 n] uint8, the low half of each byte first."""
    made = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=made[..., 0])
    np.right_shift(packed, 4, out=made[..., 1])
    return made.reshape(*packed.shape[:-1], -1)


def unpacked(words: Array, bits: int) -> Array:
    """words [rows, n] int32, the first code in the lowest bits -> [rows, n * 32 / bits] uint8."""
    held = np.ascontiguousarray(words, "<i4").view(np.uint8)
    return nibbles(held) if bits == 4 else held


def centred(codes: Array, bits: int) -> Array:
    """0 .. 2^bits - 1 -> int8 around 0, as `Quantized` holds them."""
    return codes.view(np.int8) - np.int8(8) if bits == 4 else (codes ^ np.uint8(128)).view(np.int8)
