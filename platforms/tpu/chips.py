"""TPU chips that steps are compiled for, with what Google publishes about one chip, and the slices that are known by name."""
from __future__ import annotations

from ..contract import Chip

GIB = 1 << 30


def _chip(name: str, memory_gib: int, read_gb: float, bfloat16_tera: float, int8_tera: float) -> Chip:
    flops = {"bfloat16": bfloat16_tera * 1e12, "int8": int8_tera * 1e12}
    return Chip(f"TPU {name}", memory_gib * GIB, read_gb * 1e9, flops, f"https://cloud.google.com/tpu/docs/{name}")


CHIPS = {
    "v5e": _chip("v5e", 16, 819, 197, 393),
    "v5p": _chip("v5p", 95, 2765, 459, 918),
    "v6e": _chip("v6e", 32, 1638, 918, 1836),
}
"""Of one chip: GiB of memory, GB/s that are read from it, TFLOP/s in bfloat16, TOP/s in int8. Float32 has no published peak."""
TARGETS = ("v5e:2x2", "v5e:2x4", "v5p:2x2x1", "v6e:2x2", "v6e:2x4")
"""A chip and a slice of them, as libtpu names them."""
