"""How host code starts device code: compiled by Mosaic for a TPU, or under Pallas' interpreter of one."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .interpreted_speed import quicken

Copies = Literal["on_wait", "eager", "plain"]
COMPUTES = ("float32", "bfloat16")
"""What kernels compute in; TPUs have no float16."""
MIB = 1 << 20
VMEM_LIMIT = 48 * MIB
"""What a kernel may take of a chip's vector memory."""
LANES = 128
"""Values of the last dimension in a tile; a smaller one is filled up to it."""
SUBLANES = 8
"""Rows of 32 bits in a tile."""


@dataclass(frozen=True)
class Calls:
    """interpret: on the host, with memories and copies simulated, and memory that nobody wrote full of NaN.

    copies: whether the interpreter copies when a copy is waited for, or as soon as it is started; plain: Pallas' general
    interpreter, where a copy is an assignment. That one calls nothing on the host, so that its programs can be kept on disk.
    """

    interpret: bool
    copies: Copies = "on_wait"

    def call(self, kernel: partial[None], grid_spec: Any, out_shape: Any, order: Sequence[str]) -> Callable[..., Any]:
        """kernel over `grid_spec`. order: of each dimension of the grid, "parallel" or "arbitrary" (one after the other)."""
        return pl.pallas_call(
            kernel, grid_spec=grid_spec, out_shape=out_shape, name=kernel.func.__name__,
            compiler_params=pltpu.CompilerParams(dimension_semantics=tuple(order), vmem_limit_bytes=VMEM_LIMIT),
            interpret=self._interpreter() if self.interpret else False,
        )

    def _interpreter(self) -> Any:
        if self.copies == "plain":
            return True
        quicken()
        return pltpu.InterpretParams(dma_execution_mode=self.copies)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def filled(size: int, multiple: int) -> int:
    """The next multiple."""
    return ceil_div(size, multiple) * multiple
