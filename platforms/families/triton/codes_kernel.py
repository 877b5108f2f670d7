"""Device code between codes and floats: exact one way, to the nearest and ties to even the other, in a few integer operations.

What a chip lacks (e4m3 before sm_89, and on gfx942, which has another e4m3) is done on bits, and what it does slowly
(integers to floats) as well: an integer under the exponent of 2^10 or 2^23 is a float that is too large by just that.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(codes, dtype: tl.constexpr):
    """int8, float8 or e4m3 bits (uint8) as floats of `dtype` (float32, bfloat16, float16), which has all of them."""
    if codes.dtype == tl.int8 and dtype == tl.float16:
        bits = (codes.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
        made = bits.to(tl.float16, bitcast=True) - 1152.0
    elif codes.dtype == tl.int8:
        bits = (codes.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint32) | 0x4B000000
        made = bits.to(tl.float32, bitcast=True) - 8388736.0
    elif codes.dtype == tl.uint8:
        made = e4m3_value(codes)
    else:
        made = codes
    return made.to(dtype)


@triton.jit
def e4m3_value(codes):
    """e4m3 bits as float16: exponent and fraction are shifted under a larger exponent, 2^8 too small; subnormals come along."""
    wide = codes.to(tl.uint16)
    size = (wide & 0x7F) << 7
    made = (((wide & 0x80) << 8) | size).to(tl.float16, bitcast=True) * 256.0
    return tl.where(size == 0x3F80, float("nan"), made)


@triton.jit
def e4m3_code(values):
    """float32 no larger than 448 (or what rounds to it) -> e4m3 bits, uint8. Below 2^-6 codes are steps of 2^-9."""
    bits = values.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) & 0xF
    return (tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def int8_code(values):
    """float32 within -128 .. 127 -> int8: what 1.5 * 2^23 is added to has its nearest integer in the last bits."""
    return (values + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
