"""mxfp4 (OCP Microscaling Formats 1.0), as gpt-oss stores its experts: e2m1 codes, and an e8m0 scale for every 32 inputs.

`X_blocks` [experts, outputs, inputs / 32, 16] uint8, the lower half of a byte first; `X_scales` [experts, outputs, inputs / 32] uint8, a
power of two with a bias of 127. They stand for X [experts, inputs, outputs], which kernels get in floats: bfloat16 holds each value.
"""
from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from ...ops import Scheme
from .format import Array, Format, Stored
from .packing import nibbles

BLOCK = 32
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What e2m1 means."""


class Mxfp4(Format):
    """A tensor is in codes where it has blocks: config.json lists only some of the others."""

    method = "mxfp4"

    def scheme(self, module: str) -> Scheme | None:
        return None

    def text(self, module: str) -> str | None:
        return self.method if self.module(module) else None

    def module(self, name: str) -> str | None:
        return name if f"{name}_blocks" in self.files else None

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        experts, inputs, outputs = shape
        scales = (experts, outputs, inputs // BLOCK)
        return {f"{module}_blocks": Stored(((*scales, BLOCK // 2),), ("uint8",)), f"{module}_scales": Stored((scales,), ("uint8",))}

    def weight(self, module: str) -> Array:
        """An expert after the other: the way there takes several times the memory of what is made."""
        blocks, scales = self.tensor(f"{module}_blocks"), self.tensor(f"{module}_scales")
        experts, outputs, groups = scales.shape
        made = np.empty((experts, outputs, groups * BLOCK), ml_dtypes.bfloat16)
        for expert in range(experts):
            powers = np.ldexp(np.float32(1), scales[expert].astype(np.int32) - 127)
            with np.errstate(over="ignore"):
                made[expert] = (CODES[nibbles(blocks[expert])] * powers[..., None]).reshape(outputs, -1)
        return made.swapaxes(1, 2)
