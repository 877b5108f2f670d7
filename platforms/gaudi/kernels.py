"""The table: attention and experts written for static shapes, then the torch family's, which are static already."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...ops import Kernel, Support
from ..families.supports import Plain
from ..families.torch.experts import prepare
from ..families.torch.kernels import kernels
from .attention import attention
from .experts import moe

PLAIN = Plain("gaudi")
FLOAT8 = "float8_e4m3fn"


def gaudi_kernels(device: torch.device) -> Sequence[Kernel]:
    own = [
        Kernel("attention", "gaudi.attention", PLAIN.float_dtype, attention),
        Kernel("moe", "gaudi.moe", PLAIN.float_dtype, moe, partial(prepare, device)),
    ]
    taken = {kernel.op for kernel in own}
    both = [*own, *(kernel for kernel in kernels(device) if kernel.op not in taken)]
    return [replace(kernel, supports=partial(_supports, kernel)) for kernel in both]


def _supports(kernel: Kernel, spec: Any) -> Support:
    return kernel.supports(spec) or _float8(spec)


def _float8(spec: Any) -> Support:
    """Of codes in weights, activations or cells."""
    scheme, parts = getattr(spec, "scheme", None), (spec, getattr(spec, "write", None))
    held = {getattr(part, "kv_dtype", None) for part in parts} | ({scheme.weight, scheme.activation} if scheme else set())
    return f"codes of {FLOAT8}: Gaudi 2's end at 240, the format's at 448" if FLOAT8 in held else None
