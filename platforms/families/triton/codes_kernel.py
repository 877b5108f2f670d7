"""Device functions for values as codes with scales, to the bit what ops/quantize.py says, and for float8 where a chip lacks it.

    float32        s eeeeeeee mmmMMMMMMMMMMMMMMMMMMMM
    e4m3fn         s     eeee mmm                       exponent bias 7, no infinity, NaN is 0x7F, largest 448
"""
from __future__ import annotations

import triton
import triton.language as tl

INFINITY_BITS: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def magnitude_bits(x):
    """float32 -> int32 that ascends with |x|; infinity and NaN come after all numbers."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def coding(largest_bits, LIMIT: tl.constexpr):
    """Of groups with these largest magnitudes: (what a value is multiplied by, scale, whether all values are finite)."""
    finite = largest_bits < INFINITY_BITS
    largest = largest_bits.to(tl.float32, bitcast=True)
    limit = tl.zeros_like(largest) + LIMIT
    inverse = tl.where(largest > 0, tl.div_rn(limit, tl.where(largest > 0, largest, limit)), 0.0)
    inverse = tl.where(inverse < float("inf"), inverse, 0.0)
    return inverse, tl.where(finite, tl.div_rn(largest, limit), float("nan")), finite


@triton.jit
def code(x, inverse, finite, FLOAT8: tl.constexpr):
    """float32 -> codes: int8, or the bits of e4m3fn; zeros in a group that is not finite."""
    scaled = tl.where(finite, tl.where(finite, x, 0.0) * inverse, 0.0)
    return encode_e4m3fn(scaled) if FLOAT8 else nearest(scaled).to(tl.int8)


@triton.jit
def nearest(x):
    """The nearest integer of |x| < 2^22, ties to even: 1.5 * 2^23 leaves no bit for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def encode_e4m3fn(x):
    """float32 -> uint8, to the nearest and ties to even; what is too large becomes 448, NaN stays NaN.

    Below 2^-6 codes count in steps of 2^-9, which are the last bits of 2^14 + |x|.
    """
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    bits = magnitude_bits(x)
    size = bits.to(tl.float32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    made = tl.minimum(tl.where(size < 0.015625, small, normal), 0x7E)
    made = tl.where(bits > INFINITY_BITS, 0x7F, made)
    return (made | sign).to(tl.uint8)


@triton.jit
def decode_e4m3fn(codes):
    """uint8 -> float32, exact."""
    bits = codes.to(tl.int32)
    size = bits & 0x7F
    normal = ((size << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    made = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
    made = tl.where(size == 0x7F, float("nan"), made)
    return tl.where(bits >= 0x80, -made, made)
