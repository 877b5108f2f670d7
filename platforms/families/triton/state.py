"""The torch family's state, whose blocks our own kernels move: each value is read once and written once."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....ops import StateGroup
from ..torch.arrays import host, tensor
from ..torch.state import TorchState
from . import blocks_kernel
from .device import Device
from .rows import power_of_two

WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""What values are moved as, whatever they mean: the largest that divides a head's part of a block."""


class TritonState(TorchState):
    """Arrays [layers, blocks, heads, block_tokens, dim]."""

    def __init__(self, device: Device, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> None:
        super().__init__(device.torch, groups, blocks, slots)
        self._device = device

    def read(self, group: int, blocks: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        made = {}
        for name, array in self.groups[group].items():
            layers, _, heads, tokens, dim = array.shape
            told = torch.empty(layers, heads, len(blocks) * tokens, dim, dtype=array.dtype, device=array.device)
            self._exchange(array, told, blocks, out=True)
            made[name] = host(told)
        return made

    def write(self, group: int, blocks: Sequence[int], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        for name, array in self.groups[group].items():
            self._exchange(array, tensor(arrays[name]).to(array.device), blocks, out=False)

    def copy(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """A block that is both a source and a target is read before it is written, which takes the copy in between."""
        if set(sources) & set(targets):
            super().copy(group, sources, targets)
            return
        for array in self.groups[group].values():
            self._launch(blocks_kernel.copy, array, len(sources), (_ids(sources, array), _ids(targets, array)))

    def _exchange(self, array: Tensor, told: Tensor, blocks: Sequence[int], *, out: bool) -> None:
        canonical = told.view(torch.uint8).flatten().view(_words(array).dtype)
        self._launch(blocks_kernel.exchange, array, len(blocks), (canonical, _ids(blocks, array)), OUT=out)

    def _launch(self, kernel: Any, array: Tensor, count: int, arguments: tuple[Tensor, ...], **constants: Any) -> None:
        moved = _words(array)
        layers, _, heads, size = moved.shape
        rows = layers * count * heads
        config = self._device.configured("blocks", rows=rows)
        block = min(config.meta["BLOCK"], power_of_two(size))
        self._device.launch(
            kernel, (-(-rows // config.meta["ROWS"]), -(-size // block)),
            moved, *arguments, rows, count, heads, size, moved.stride(0), BLOCK=block, **constants, config=config,
        )


def _words(array: Tensor) -> Tensor:
    """[layers, blocks, heads, words], a view."""
    whole = array.view(torch.uint8).flatten(3)
    return next(whole.view(word) for word in WORDS if whole.shape[-1] % word.itemsize == 0)


def _ids(blocks: Sequence[int], array: Tensor) -> Tensor:
    return torch.tensor(list(blocks), dtype=torch.int32).to(array.device)
