"""AWQ (Lin et al. 2023, arXiv 2306.00978), as AutoAWQ's GEMM version stores it: packed along the outputs, in an order of its own.

qweight [inputs, outputs / 8] int32; qzeros [groups, outputs / 8] int32; scales [groups, outputs]. The nibbles of a word, the lowest
first, belong to outputs 0 2 4 6 1 3 5 7 of its eight.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ops import Quantized, Scheme
from ...ops.quantize import SCALES
from .format import Array, Format, Stored, check_zero
from .packing import centred, unpacked

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where outputs 0 to 7 lie in a word."""


class Awq(Format):
    """A module is quantized where it has a qweight: config.json lists only some of the others."""

    method = "awq"

    def __init__(self, settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        super().__init__(settings, files)
        self.number(("bits", "w_bit"), (4,))
        self.size = self.group("group_size", "q_group_size")
        self.zeros = settings.get("zero_point", True) is not False
        if str(version := settings.get("version", "gemm")).lower() != "gemm":
            raise self.error(f"'version' is {version!r}", "use a checkpoint in the version gemm")

    def scheme(self, module: str) -> Scheme | None:
        if f"{module}.qweight" not in self.files:
            return None
        return Scheme("int4", group=self.size, zeros=self.zeros, scales=self.scales_dtype(f"{module}.scales"))

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        outputs, inputs = shape
        groups = -(-inputs // (self.size or inputs))
        return {
            f"{module}.qweight": Stored(((inputs, outputs // 8),), ("int32",)),
            f"{module}.qzeros": Stored(((groups, outputs // 8),), ("int32",), optional=not self.zeros),
            f"{module}.scales": Stored(((groups, outputs),), tuple(SCALES)),
        }

    def weight(self, module: str) -> Quantized:
        scales = np.ascontiguousarray(self.tensor(f"{module}.scales").T)
        zeros = _outputs(self.tensor(f"{module}.qzeros")) if f"{module}.qzeros" in self.files else None
        if zeros is not None and not self.zeros:
            check_zero(f"{module}.qzeros", zeros, "zero_point false")
            zeros = None
        return Quantized(_outputs(self.tensor(f"{module}.qweight")), scales, zeros)


def _outputs(words: Array) -> Array:
    """[rows, outputs / 8] int32 -> codes [outputs, rows] int8."""
    eights = unpacked(words, 4).reshape(len(words), -1, 8)
    return centred(np.ascontiguousarray(eights[..., PLACES].reshape(len(words), -1).T), 4)
