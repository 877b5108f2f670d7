"""The table of Triton kernels, in order of preference; torch's stand behind them.

Left to torch, whose own kernels are one pass over memory already: embedding, take_rows, add, multiply. Rarely used, or never alone in a
step: scale, derive.
"""
from __future__ import annotations

from collections.abc import Sequence

from ....ops import Kernel
from . import attention, cells, experts, linear, quantized, rows, sample
from .device import Device


def triton_kernels(device: Device) -> Sequence[Kernel]:
    return [
        *attention.kernels(device),
        *rows.kernels(device),
        *cells.kernels(device),
        *linear.kernels(device),
        *quantized.kernels(device),
        *experts.kernels(device),
        *sample.kernels(device),
    ]
