"""Shares of a row's keys put together: the softmax of the whole from (peak, total, mixed) of each split, in one order.

    peak = max peak_s    out = sum mixed_s 2^(peak_s - peak) / sum total_s 2^(peak_s - peak)
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_merge_kernel(out, parts, peaks, totals, places, SPLITS: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """out [places, VALUE_DIM] from parts [SPLITS, places, VALUE_DIM], peaks and totals [SPLITS, places]; a place is a token's head.

    Grid: places; pieces of WIDTH entries. A share without keys has total 0, and its part is not read.
    """
    place = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SPLITS).to(tl.int64) * places + place
    peak, total = tl.load(peaks + at), tl.load(totals + at)
    highest = tl.max(peak, 0)
    # Padding has no share at all: -inf less -inf would be NaN.
    factor = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(total * factor, 0)
    dim = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    part = tl.load(parts + at[:, None] * VALUE_DIM + dim[None, :], mask=(total > 0)[:, None] & (dim < VALUE_DIM)[None, :], other=0.0)
    mixed = tl.sum(part * factor[:, None], 0)
    made = mixed / tl.where(whole == 0, 1.0, whole)
    tl.store(out + place * VALUE_DIM + dim, made.to(out.dtype.element_ty), mask=dim < VALUE_DIM)
