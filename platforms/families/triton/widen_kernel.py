"""Device code from codes to floats: exact, in registers, in a few operations on bits.

Chips convert integers slowly, and some lack e4m3. An integer under the exponent of 2^10 or 2^23 is a float that is too large by
just that; e4m3's exponent and fraction, shifted under float16's, are 2^8 too small, subnormals included.
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
    """e4m3fn bits (uint8) as float16, NaN included."""
    wide = codes.to(tl.uint16)
    size = (wide & 0x7F) << 7
    made = (((wide & 0x80) << 8) | size).to(tl.float16, bitcast=True) * 256.0
    return tl.where(size == 0x3F80, float("nan"), made)
