"""split and concat: the last dimension in parts, and parts as one."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import SpecError
from .spec import Abstract, Spec, expect, spec, wide
from .tolerance import EXACT


@spec
class Split(Spec):
    """`ops.split(spec, x [..., sum of sizes]) -> ([..., size], ...)`, in their order."""

    op = "split"
    tolerance = EXACT

    sizes: tuple[int, ...]
    dtype: str

    def validate(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise SpecError(f"{self.op}: sizes {self.sizes}; two at least, each at least 1")

    def infer(self, x: Abstract) -> tuple[Abstract, ...]:
        expect(self.op, "x", x, (sum(self.sizes),), self.dtype)
        return tuple(Abstract((*x.shape[:-1], size), self.dtype) for size in self.sizes)

    def reference(self, x: Any) -> Any:
        return tuple(np.split(wide(x), np.cumsum(self.sizes)[:-1], axis=-1))


@spec
class Concat(Spec):
    """`ops.concat(spec, *parts [..., size]) -> [..., sum of sizes]`."""

    op = "concat"
    tolerance = EXACT

    sizes: tuple[int, ...]
    dtype: str

    validate = Split.validate

    def infer(self, *parts: Abstract) -> Abstract:
        if len(parts) != len(self.sizes):
            raise SpecError(f"concat: {len(parts)} parts for the sizes {self.sizes}")
        for part, size in zip(parts, self.sizes, strict=True):
            expect(self.op, "a part", part, (*parts[0].shape[:-1], size), self.dtype)
        return Abstract((*parts[0].shape[:-1], sum(self.sizes)), self.dtype)

    def reference(self, *parts: Any) -> Any:
        return np.concatenate([wide(part) for part in parts], axis=-1)
