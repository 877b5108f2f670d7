"""Device code of ops whose every row stands alone: norms."""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(out, x, weight, size, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < size
    values = tl.load(x + row * size + lane, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / size + epsilon)
    made = values * inverse * tl.load(weight + lane, mask=inside, other=0.0)
    tl.store(out + row * size + lane, made.to(out.dtype.element_ty), mask=inside)
