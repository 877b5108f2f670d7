"""GPTQ (Frantar et al. 2022, arXiv 2210.17323), as AutoGPTQ and GPTQModel store it: packed along the inputs, transposed.

qweight [inputs * bits / 32, outputs] int32; scales [groups, outputs]; qzeros [groups, outputs * bits / 32] int32, less one in the
format `gptq`, as they are in `gptq_v2`; g_idx [inputs] says each input's group.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ops import Quantized, Scheme
from ...ops.quantize import SCALES
from .format import Format, Stored, check_order, check_zero
from .packing import centred, unpacked


class Gptq(Format):
    """A module is quantized where it has a qweight: config.json need not list them."""

    method = "gptq"

    def __init__(self, settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        super().__init__(settings, files)
        self.bits, self.size = self.number(("bits",), (4, 8)), self.group("group_size")
        self.symmetric = settings.get("sym", True) is not False
        kind = settings.get("checkpoint_format", "gptq")
        if kind not in ("gptq", "gptq_v2"):
            raise self.error(f"'checkpoint_format' is {kind!r}", "save it as gptq or gptq_v2")
        if settings.get("dynamic"):
            raise self.error("'dynamic' gives modules settings of their own", "use a checkpoint with one setting for all")
        self.less = 1 if kind == "gptq" else 0

    def scheme(self, module: str) -> Scheme | None:
        if f"{module}.qweight" not in self.files:
            return None
        scales = self.scales_dtype(f"{module}.scales")
        return Scheme("int4" if self.bits == 4 else "int8", group=self.size, zeros=not self.symmetric, scales=scales)

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        outputs, inputs = shape
        groups = -(-inputs // (self.size or inputs))
        return {
            f"{module}.qweight": Stored(((inputs * self.bits // 32, outputs),), ("int32",)),
            f"{module}.qzeros": Stored(((groups, outputs * self.bits // 32),), ("int32",)),
            f"{module}.scales": Stored(((groups, outputs),), tuple(SCALES)),
            f"{module}.g_idx": Stored(((inputs,),), ("int32", "int64"), optional=True),
        }

    def weight(self, module: str) -> Quantized:
        if f"{module}.g_idx" in self.files:
            check_order(f"{module}.g_idx", self.tensor(f"{module}.g_idx"), self.size)
        codes = centred(unpacked(self.tensor(f"{module}.qweight").T, self.bits), self.bits)
        stored = unpacked(self.tensor(f"{module}.qzeros"), self.bits) + np.uint8(self.less)
        zeros = centred(stored & np.uint8(2**self.bits - 1), self.bits)
        scales = np.ascontiguousarray(self.tensor(f"{module}.scales").T)
        if self.symmetric:
            check_zero(f"{module}.qzeros", zeros, "sym")
            return Quantized(codes, scales)
        return Quantized(codes, scales, np.ascontiguousarray(zeros.T))

    def idle(self, name: str) -> bool:
        """AutoGPTQ wrote a bias of zeros beside linears that have none."""
        module = name.removesuffix(".bias")
        return module != name and f"{module}.qweight" in self.files and not self.tensor(name).any()
