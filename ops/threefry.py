"""Threefry-2x32-20 (Salmon et al. 2011): random bits that depend on their key and counter and on nothing else."""
from __future__ import annotations

from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint32]]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Words, Words]:
    """Two words of random bits for each broadcast (key, counter), all uint32."""
    key0, key1, x0, x1 = (np.atleast_1d(word).astype(np.uint32) for word in (*key, *counter))
    keys = (key0, key1, key0 ^ key1 ^ np.uint32(PARITY))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def uniforms(seed_low: Any, seed_high: Any, index: Any, position: Any, vocab: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[samples, vocab] float32 in (0, 1), from [samples] of each argument: one number per token id.

    The request's seed makes a key for (sample index, position); tokens 2i and 2i + 1 share its counter i, so that a
    vocabulary shards at even ids. 23 bits and a half are exact in float32, so neither 0 nor 1 occurs.
    """
    low, high = threefry((seed_low, seed_high), (index, position))
    pairs = np.arange((vocab + 1) // 2, dtype=np.uint32)
    bits = threefry((low[:, None], high[:, None]), (pairs[None, :], np.uint32(0)))
    mixed = np.stack(bits, axis=-1).reshape(len(low), -1)[:, :vocab]
    return ((mixed >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
