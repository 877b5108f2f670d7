"""What kernels in plain framework calls answer when they are asked whether they support a spec."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ops import Linear, Support
from ...ops.quantize import CODES

COMPUTES = ("float32", "bfloat16", "float16")
SCHEMES = tuple(CODES)
"""For `Capabilities.schemes`: every way to quantize a weight, in groups of any size."""


@dataclass(frozen=True)
class Plain:
    """The answers of one framework's plain kernels: they compute in float32 and round once, from and to `COMPUTES`."""

    framework: str

    def float_dtype(self, spec: Any) -> Support:
        return None if spec.dtype in COMPUTES else f"dtype {spec.dtype}; plain {self.framework} kernels compute in {', '.join(COMPUTES)}"

    def single(self, spec: Linear) -> Support:
        return self._plain(spec) or (f"{len(spec.outputs)} outputs need a fused weight" if len(spec.outputs) > 1 else None)

    def fused(self, spec: Linear) -> Support:
        return self._plain(spec) or (f"one output in {spec.dtype} needs no fused weight" if len(spec.outputs) == 1 else None)

    def quantized(self, spec: Linear) -> Support:
        return f"for weights under a scheme, and not for those of {spec.dtype}" if spec.scheme is None else self._linear(spec)

    def _plain(self, spec: Linear) -> Support:
        return self._linear(spec) if spec.scheme is None else f"scheme {spec.scheme} is another kernel's; this one takes floats"

    def _linear(self, spec: Linear) -> Support:
        if spec.out_dtype not in (None, spec.dtype, "float32"):
            return f"out_dtype {spec.out_dtype}; only {spec.dtype} and float32 are implemented"
        return self.float_dtype(spec)
