"""The table of Pallas kernels, in order of preference; the JAX family's stand behind them."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ops import Kernel
from . import attention, experts, quantized
from .calls import Calls


def pallas_kernels(interpret: bool, device: Any = None) -> Sequence[Kernel]:
    """interpret: under Pallas' TPU interpreter, on the host. device: where weights are prepared; None: JAX's default."""
    calls = Calls(interpret)
    return [*attention.kernels(calls), *quantized.kernels(calls, device), *experts.kernels(calls, device)]
