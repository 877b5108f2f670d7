"""Host side of the ops whose every row stands alone."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ....ops import Kernel, RmsNorm
from ..supports import Plain
from ..torch.rows import prepare_norm
from . import rows_kernel
from .device import Device

PLAIN = Plain("Triton")


def kernels(device: Device) -> Sequence[Kernel]:
    norm = partial(prepare_norm, device.torch)
    return [Kernel("rms_norm", "triton.rms_norm", PLAIN.float_dtype, partial(rms_norm, device), norm, batch_invariant=True)]


def rms_norm(device: Device, spec: RmsNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    """x [..., size] -> [..., size]; one program a row."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x.numel() // spec.size
    device.launch(rows_kernel.rms_norm, (rows,), out, x, weight[0], spec.size, spec.epsilon,
                  BLOCK=power_of_two(spec.size), config=device.configured("rms_norm", size=spec.size))
    return out


def power_of_two(size: int) -> int:
    """The smallest one that is no smaller."""
    return 1 << (size - 1).bit_length()
