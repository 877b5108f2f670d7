"""Where kernels run: a chip, the interpreter, or a compiler that only looks. Kernels ask for nothing but `launch`."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .launches import Launch, launch_of
from .target import Target

Start = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any], Launch], None]
"""start(kernel, grid, arguments, constants, launch)."""


@dataclass(frozen=True)
class Device:
    """What host code of a kernel file gets: where tensors lie, what the chip allows, and how a kernel is started."""

    torch: torch.device
    target: Target
    start: Start

    def configured(self, kernel: str, **key: int | str) -> Launch:
        """The entry of `launches.toml` for this chip."""
        return launch_of(self.target, kernel, **key)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Launch, **constants: Any) -> None:
        """Start a `@triton.jit` kernel: tensors and numbers in its order, its `tl.constexpr` by name.

        config: warps, stages, and the tile sizes, which are constants too. A grid with a 0 starts nothing.
        """
        if all(grid):
            self.start(kernel, grid, arguments, {**config.meta, **constants}, config)


def on_chip(device: torch.device) -> Start:
    """On torch's current stream of that device, compiled at the first use of each combination of types.

    The current device belongs to a thread, and steps may be started from another one than the platform was opened in.
    The vendor's library may otherwise round partial sums to 16 bits, which the ops' definition does not.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch) -> None:
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants, **launch.options)

    return start
