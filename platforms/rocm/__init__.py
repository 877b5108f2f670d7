"""AMD GPUs of the Instinct line (gfx942, gfx950): torch tensors, Triton kernels, and AMD's own products through torch."""
from __future__ import annotations

from ..contract import CONTRACT
from ..families.triton import TritonPlatform


class Rocm(TritonPlatform):
    """`rocm`, `rocm:1`, `rocm:interpreted`. torch's ROCm builds call their devices "cuda" too."""

    name = "rocm"
    contract = CONTRACT
    vendor = "amd"
    targets = ("gfx942", "gfx950")
    chip = "AMD GPU"
    nodes = ("/dev/kfd",)
    build = "hip"
    install = "install AMD's ROCm builds of torch and triton, then pip install 'inferplane[rocm]'"
