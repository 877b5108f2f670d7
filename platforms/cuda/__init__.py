"""NVIDIA GPUs from Ampere on: torch tensors, Triton kernels, and NVIDIA's own products through torch."""
from __future__ import annotations

from ..contract import CONTRACT
from ..families.triton import TritonPlatform


class Cuda(TritonPlatform):
    """`cuda`, `cuda:1`, `cuda:interpreted`."""

    name = "cuda"
    contract = CONTRACT
    vendor = "nvidia"
    targets = ("sm_80", "sm_90", "sm_100")
    chip = "NVIDIA GPU"
    nodes = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*", "/dev/dxg")
    build = "cuda"
    install = "pip install 'inferplane[cuda]'"
