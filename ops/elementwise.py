"""add, multiply, scale, activation, and gated_activation (optional, with a default). One dtype in, the same out."""
from __future__ import annotations

from collections.abc import Callable
from math import erfc, sqrt
from typing import Any

import numpy as np

from ..errors import SpecError
from .kernel import Default
from .spec import Abstract, Spec, expect, spec, wide
from .tolerance import elementwise


@spec
class Add(Spec):
    """`ops.add(spec, a [...], b [...]) -> [...]`."""

    op = "add"
    tolerance = elementwise(depth=1)

    dtype: str

    def infer(self, a: Abstract, b: Abstract) -> Abstract:
        expect(self.op, "a", a, (), self.dtype)
        expect(self.op, "b", b, a.shape, self.dtype)
        return a

    def reference(self, a: Any, b: Any) -> Any:
        return wide(a) + wide(b)

    def magnitude(self, a: Any, b: Any) -> Any:
        return np.abs(wide(a)) + np.abs(wide(b))


@spec
class Multiply(Spec):
    """`ops.multiply(spec, a [...], b [...]) -> [...]`."""

    op = "multiply"
    tolerance = elementwise(depth=1)

    dtype: str

    infer = Add.infer

    def reference(self, a: Any, b: Any) -> Any:
        return wide(a) * wide(b)


@spec
class Scale(Spec):
    """`ops.scale(spec, x [...]) -> [...]`: x * factor."""

    op = "scale"
    tolerance = elementwise(depth=2)

    factor: float
    dtype: str

    def infer(self, x: Abstract) -> Abstract:
        expect(self.op, "x", x, (), self.dtype)
        return x

    def reference(self, x: Any) -> Any:
        return wide(x) * self.factor


@spec
class Activation(Spec):
    """`ops.activation(spec, x [...]) -> [...]`: silu, gelu (erf), gelu_tanh, relu or tanh."""

    op = "activation"
    tolerance = elementwise(depth=32)

    kind: str
    dtype: str

    def validate(self) -> None:
        if self.kind not in FORMULAS:
            raise SpecError(f"activation: unknown kind {self.kind!r}; known: {', '.join(FORMULAS)}")

    infer = Scale.infer

    def reference(self, x: Any) -> Any:
        return FORMULAS[self.kind](wide(x))

    def magnitude(self, x: Any) -> Any:
        return np.abs(wide(x))


@spec
class GatedActivation(Spec):
    """`ops.gated_activation(spec, gate [...], up [...]) -> [...]`: activation(gate) * up."""

    op = "gated_activation"
    tolerance = elementwise(depth=32, halves=3)

    kind: str
    dtype: str

    validate = Activation.validate
    infer = Add.infer

    def reference(self, gate: Any, up: Any) -> Any:
        return FORMULAS[self.kind](wide(gate)) * wide(up)

    def magnitude(self, gate: Any, up: Any) -> Any:
        return np.abs(wide(gate) * wide(up))


def _erfc(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.vectorize(erfc, otypes=[np.float64])(x) if x.size else x


def _sigmoid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-np.maximum(x, -700)))


FORMULAS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * 0.5 * _erfc(-x / sqrt(2)),
    "gelu_tanh": lambda x: x * _sigmoid(2 * sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}
"""(1 + erf(u)) is erfc(-u) and (1 + tanh(u)) is 2 sigmoid(2u): without the cancellation far below zero."""


def _gated_activation(ops: Any, op: GatedActivation, gate: Any, up: Any) -> Any:
    return ops.multiply(Multiply(dtype=op.dtype), ops.activation(Activation(kind=op.kind, dtype=op.dtype), gate), up)


GATED_ACTIVATION = Default(
    "gated_activation",
    lambda op: (Activation(kind=op.kind, dtype=op.dtype), Multiply(dtype=op.dtype)),
    _gated_activation,
)
