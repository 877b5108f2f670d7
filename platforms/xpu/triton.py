"""Our Triton kernels on Intel GPUs, where a Triton with Intel's backend is installed.

Products, of experts and of codes too, stay torch's: `launches.toml` has tiles of the other vendors alone for ours.
"""
from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from ...ops import Kernel

if TYPE_CHECKING:
    from ..families.triton.device import Start

OPS = ("attention", "rms_norm", "layer_norm", "add_rms_norm", "activation", "gated_activation", "rope", "write_kv", "qkv_rope_write",
       "sample")
WARP_SIZE, SHARED_BYTES, REGISTERS = 32, 131_072, 128
"""Of Intel's Data Center GPU Max and Arc B series alike: lanes, local memory of a work group, general registers of a thread."""


def triton_kernels(device: torch.device) -> Sequence[Kernel]:
    lacking = _lacking(device)
    if lacking:
        return [Kernel(op, f"triton.{op}", lambda _: lacking, _refused) for op in OPS]
    from ..families.triton import attention, cells, rows, sample
    from ..families.triton.device import Device
    from ..families.triton.target import Target

    units = torch.xpu.get_device_properties(device).max_compute_units
    target = Target("intel", "xe", WARP_SIZE, SHARED_BYTES, (), units, REGISTERS)
    ours = Device(device, target, _on_chip(device))
    return [kernel for file in (attention, rows, cells, sample) for kernel in file.kernels(ours)]


def _lacking(device: torch.device) -> str:
    """Why there are none; empty: there are."""
    if device.type == "cpu":
        return "Triton's backend for Intel needs the GPU"
    if find_spec("triton") is None:
        return "triton is not installed"
    return "" if find_spec("triton.backends.intel") else "the installed triton has no backend for Intel GPUs"


def _on_chip(device: torch.device) -> Start:
    """On torch's current stream of that device. Never run: no Intel GPU has been in reach."""
    def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Any) -> None:
        with torch.xpu.device(device):
            kernel[grid](*arguments, **constants, **launch.options)

    return start


def _refused(*_: Any) -> Any:
    raise AssertionError("a kernel that says no is never bound")
