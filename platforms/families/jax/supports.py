"""What the plain JAX kernels answer when they are asked whether they support a spec."""
from __future__ import annotations

from typing import Any

from ....ops import AddRmsNorm, Linear, QkvRopeWrite, Support

COMPUTES = ("float32", "bfloat16", "float16")


def float_dtype(spec: Any) -> Support:
    """Every op here computes in float32 and rounds once, from and to these dtypes."""
    if isinstance(spec, AddRmsNorm):
        spec = spec.norm
    if isinstance(spec, QkvRopeWrite):
        spec = spec.query
    return None if spec.dtype in COMPUTES else f"dtype {spec.dtype}; plain JAX kernels compute in {', '.join(COMPUTES)}"


def single(spec: Linear) -> Support:
    return _plain(spec) or (f"{len(spec.outputs)} outputs need a fused weight" if len(spec.outputs) > 1 else None)


def fused(spec: Linear) -> Support:
    return _plain(spec) or ("one output needs no fused weight" if len(spec.outputs) == 1 else None)


def _plain(spec: Linear) -> Support:
    if spec.scheme is not None:
        return f"scheme {spec.scheme!r} is not implemented in plain JAX; only unquantized weights are"
    if spec.reduce:
        return "the input axis is sharded, and plain JAX kernels sum over no mesh; the platform brings its own kernel"
    return float_dtype(spec)
