"""Device functions for Threefry-2x32-20 and its uniforms, equal to ops/threefry.py to the bit. All words are uint32."""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def threefry(key0, key1, x0, x1):
    """Two words of random bits for each broadcast (key, counter)."""
    key2 = key0 ^ key1 ^ 0x1BD11BDA
    x0, x1 = x0 + key0, x1 + key1
    x0, x1 = _rounds(x0, x1, 13, 15, 26, 6)
    x0, x1 = x0 + key1, x1 + key2 + 1
    x0, x1 = _rounds(x0, x1, 17, 29, 16, 24)
    x0, x1 = x0 + key2, x1 + key0 + 2
    x0, x1 = _rounds(x0, x1, 13, 15, 26, 6)
    x0, x1 = x0 + key0, x1 + key1 + 3
    x0, x1 = _rounds(x0, x1, 17, 29, 16, 24)
    x0, x1 = x0 + key1, x1 + key2 + 4
    x0, x1 = _rounds(x0, x1, 13, 15, 26, 6)
    return x0 + key2, x1 + key0 + 5


@triton.jit
def _rounds(x0, x1, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    x0 = x0 + x1
    x1 = ((x1 << A) | (x1 >> (32 - A))) ^ x0
    x0 = x0 + x1
    x1 = ((x1 << B) | (x1 >> (32 - B))) ^ x0
    x0 = x0 + x1
    x1 = ((x1 << C) | (x1 >> (32 - C))) ^ x0
    x0 = x0 + x1
    x1 = ((x1 << D) | (x1 >> (32 - D))) ^ x0
    return x0, x1


@triton.jit
def uniforms(seed_low, seed_high, index, position, first, BLOCK: tl.constexpr):
    """[BLOCK] float32 in (0, 1) for token ids first .. first + BLOCK - 1, where `first` is even: a pair of ids shares a counter."""
    key0, key1 = threefry(_word(seed_low), _word(seed_high), _word(index), _word(position))
    pair = _word(first // 2 + tl.arange(0, BLOCK // 2))
    low, high = threefry(key0, key1, pair, tl.zeros_like(pair))
    mixed = tl.interleave(low, high)
    return ((mixed >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def _word(x):
    return x.to(tl.uint32, bitcast=True)
