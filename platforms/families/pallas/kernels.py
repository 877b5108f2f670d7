"""The table of Pallas kernels, in order of preference; the JAX family's stand behind them."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ops import Kernel
from . import attention, experts, quantized
from .calls import Calls, Copies


def pallas_kernels(interpret: bool, device: Any = None, copies: Copies = "on_wait") -> Sequence[Kernel]:
    """interpret, copies: see `Calls`. device: where weights are prepared; None: JAX's default."""
    calls = Calls(interpret, copies)
    return [*attention.kernels(calls), *quantized.kernels(calls, device), *experts.kernels(calls, device)]
