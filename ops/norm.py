"""rms_norm and layer_norm, and add_rms_norm: the residual addition that precedes a norm (optional, with a default)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .elementwise import Add
from .kernel import Default
from .spec import Abstract, Spec, expect, spec, wide
from .tolerance import Tolerance, elementwise
from .weights import Tensor, Weight


@spec
class RmsNorm(Spec):
    """`ops.rms_norm(spec, x [..., size], weight) -> [..., size]`: x / sqrt(mean(x^2) + epsilon) * (weight + offset).

    Zhang and Sennrich 2019. `offset` is 1 for families that store weights around 0.
    """

    op = "rms_norm"
    size: int
    epsilon: float
    dtype: str
    offset: float = 0.0

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=16 + self.size // 2)

    def infer(self, x: Abstract, weight: Any) -> Abstract:
        expect("rms_norm", "x", x, (self.size,), self.dtype)
        return x

    def reference(self, x: Any, weight: Sequence[Any]) -> Any:
        x = wide(x)
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * (wide(weight[0]) + self.offset)

    def weight(self, name: str) -> Weight:
        return Weight((Tensor(f"{name}.weight", (self.size,), (None,)),))


@spec
class LayerNorm(Spec):
    """`ops.layer_norm(spec, x [..., size], weight) -> [..., size]`: (x - mean) / sqrt(var + epsilon) * weight (+ bias). Ba et al. 2016."""

    op = "layer_norm"
    size: int
    epsilon: float
    dtype: str
    bias: bool = True

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=64 + self.size // 2)

    def infer(self, x: Abstract, weight: Any) -> Abstract:
        expect("layer_norm", "x", x, (self.size,), self.dtype)
        return x

    def reference(self, x: Any, weight: Sequence[Any]) -> Any:
        x = wide(x)
        x = x - np.mean(x, axis=-1, keepdims=True)
        y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * wide(weight[0])
        return y + wide(weight[1]) if self.bias else y

    def magnitude(self, x: Any, weight: Sequence[Any]) -> Any:
        x = wide(x)
        scale = np.sqrt(np.var(x, axis=-1, keepdims=True) + self.epsilon)
        largest = np.abs(x).max(axis=-1, keepdims=True, initial=0)
        return (np.abs(x) + largest) / scale * np.abs(wide(weight[0])) + (np.abs(wide(weight[1])) if self.bias else 0)

    def weight(self, name: str) -> Weight:
        bias = (Tensor(f"{name}.bias", (self.size,), (None,)),) if self.bias else ()
        return Weight((Tensor(f"{name}.weight", (self.size,), (None,)),), bias)


@spec
class AddRmsNorm(Spec):
    """`ops.add_rms_norm(spec, x, residual, weight) -> (rms_norm(x + residual), x + residual)`. A kernel may round the sum first."""

    op = "add_rms_norm"
    tolerance = Tolerance("naive_relative", halves=2)

    norm: RmsNorm

    @property
    def dtype(self) -> str:
        return self.norm.dtype

    def infer(self, x: Abstract, residual: Abstract, weight: Any) -> tuple[Abstract, Abstract]:
        expect(self.op, "residual", residual, x.shape, x.dtype)
        return self.norm.infer(x, weight), x

    def reference(self, x: Any, residual: Any, weight: Sequence[Any]) -> Any:
        total = wide(x) + wide(residual)
        return self.norm.reference(total, weight), total


def _add_rms_norm(ops: Any, op: AddRmsNorm, x: Any, residual: Any, weight: Any) -> Any:
    total = ops.add(Add(dtype=op.norm.dtype), x, residual)
    return ops.rms_norm(op.norm, total, weight), total


ADD_RMS_NORM = Default("add_rms_norm", lambda op: (Add(dtype=op.norm.dtype), op.norm), _add_rms_norm)
