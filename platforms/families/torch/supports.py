"""What the plain torch kernels answer when they are asked whether they support a spec."""
from __future__ import annotations

from typing import Any

from ....ops import AddRmsNorm, QkvRopeWrite, Support

COMPUTES = ("float32", "bfloat16", "float16")


def float_dtype(spec: Any) -> Support:
    """Every op here computes in float32 and rounds once, from and to these dtypes."""
    if isinstance(spec, AddRmsNorm):
        spec = spec.norm
    if isinstance(spec, QkvRopeWrite):
        spec = spec.query
    return None if spec.dtype in COMPUTES else f"dtype {spec.dtype}; plain torch kernels compute in {', '.join(COMPUTES)}"
