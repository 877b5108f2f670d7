"""fp8 in blocks, as DeepSeek V3 is published.

weight [outputs, inputs] float8_e4m3fn, weight_scale_inv [blocks of outputs, blocks of inputs]: a weight is its code times the scale
of its block. `activation_scheme` dynamic says how the published kernels multiply, not what the weights stand for: activations stay
in floats.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...ops import Quantized, Scheme
from ...ops.quantize import SCALES
from .format import Format, Stored


class Fp8(Format):
    """A module is quantized where it has a weight_scale_inv."""

    method = "fp8"

    def __init__(self, settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        super().__init__(settings, files)
        for key, known in (("fmt", "e4m3"), ("activation_scheme", "dynamic")):
            if settings.get(key, known) != known:
                raise self.error(f"{key!r} is {settings[key]!r}", f"use a checkpoint whose {key} is {known}")
        block = settings.get("weight_block_size")
        if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
            raise self.error(f"'weight_block_size' is {block!r}", "use a checkpoint that is quantized in blocks, such as [128, 128]")
        self.blocks = Scheme("float8_e4m3fn", group=block[1], rows=block[0])

    def scheme(self, module: str) -> Scheme | None:
        name = f"{module}.weight_scale_inv"
        if name not in self.files:
            return None
        return replace(self.blocks, scales=self.scales_dtype(name))

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        outputs, inputs = shape
        scales = self.blocks.scale_shape(outputs, inputs)
        return {
            f"{module}.weight": Stored((shape,), ("float8_e4m3fn",)),
            f"{module}.weight_scale_inv": Stored((scales,), tuple(SCALES)),
        }

    def weight(self, module: str) -> Quantized:
        return Quantized(self.tensor(f"{module}.weight"), self.tensor(f"{module}.weight_scale_inv"))
