"""A Triton platform aimed at a chip that is not there: its host code runs on shapes, its launches are compiled."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ....ops import Kernel
from ...contract import KernelCode
from ..torch.launch import ThreadLauncher
from .compiled import Compiler
from .kernels import triton_kernels

if TYPE_CHECKING:
    from .platform import TritonPlatform


class CompileLauncher(ThreadLauncher):
    """What is staged loses its numbers. Answers are zeros."""

    def stage(self, array: torch.Tensor) -> torch.Tensor:
        return array.to("meta")


class CrossCompiler:
    """`contract.Compiler` of cuda and rocm: what torch and the vendor's libraries start is left out."""

    def __init__(self, platform: TritonPlatform) -> None:
        assert isinstance(platform.runs_on.start, Compiler)
        self.platform = platform
        self.kernels: Sequence[Kernel] = triton_kernels(platform.runs_on)
        self._compiler = platform.runs_on.start

    def made(self) -> Sequence[KernelCode]:
        found, self._compiler.asked = self._compiler.asked, []
        return found
