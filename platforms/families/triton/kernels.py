"""The table of Triton kernels, in order of preference; torch's stand behind them."""
from __future__ import annotations

from collections.abc import Sequence

from ....ops import Kernel
from . import attention, cells, rows, sample
from .device import Device


def triton_kernels(device: Device) -> Sequence[Kernel]:
    return [
        *attention.kernels(device),
        *rows.kernels(device),
        *cells.kernels(device),
        *sample.kernels(device),
    ]
