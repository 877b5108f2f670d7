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


def on_chip(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch) -> None:
    """On the current device and stream of torch, compiled at the first use of each combination of types."""
    kernel[grid](*arguments, **constants, **launch.options)
