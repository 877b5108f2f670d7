"""State in device memory, written in place: one stacked tensor per array of a group, and a view of it per layer."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....errors import CapacityError, SpecError
from ....ops import StateGroup
from .arrays import TORCH, host, tensor
from .codes import bits, values


class Cell:
    """One layer's state: `k`, `v` [blocks, kv_heads, block_tokens, dim], or whatever names its group gives."""

    def __init__(self, group: int, arrays: Mapping[str, torch.Tensor]) -> None:
        self.group = group
        self.__dict__.update(arrays)


class TorchState:
    """`state[layer]` is that layer's cell.

    A group's arrays are [layers, blocks, heads, block_tokens, dim]; a recurrent group's blocks are slots of one token.
    """

    last_token: torch.Tensor
    """[slots + 1] int32."""

    def __init__(self, device: torch.device, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> None:
        """Raises `CapacityError` where the device's memory is too small."""
        self.last_token = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.groups: list[dict[str, torch.Tensor]] = []
        self._cells: dict[int, Cell] = {}
        for index, (group, count) in enumerate(zip(groups, blocks, strict=True)):
            count, tokens = (count, group.block_tokens) if group.kind == "paged" else (slots + 1, 1)
            try:
                arrays = {
                    name: _zeros((len(group.layers), count, one.heads, tokens, one.dim), TORCH[one.dtype], device)
                    for name, one in group.arrays.items()
                }
            except (RuntimeError, MemoryError) as error:
                told = f"{count} blocks of state group {group.name!r} do not fit on {device}; ask for fewer"
                raise CapacityError(f"{told}: {error}") from error
            self.groups.append(arrays)
            for place, layer in enumerate(group.layers):
                if layer in self._cells:
                    raise SpecError(f"layer {layer} is in two state groups, {group.name!r} and another; a layer has one cell")
                self._cells[layer] = Cell(index, {name: array[place] for name, array in arrays.items()})

    def __getitem__(self, layer: int) -> Cell:
        return self._cells[layer]

    def read(self, group: int, blocks: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        """Canonical: for each array [layers, heads, tokens, dim]."""
        return {
            name: host(values(bits(array)[:, _ids(blocks, array)], array.dtype).transpose(1, 2).flatten(2, 3))
            for name, array in self.groups[group].items()
        }

    def write(self, group: int, blocks: Sequence[int], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        for name, array in self.groups[group].items():
            placed = tensor(arrays[name]).to(array.device)
            bits(array)[:, _ids(blocks, array)] = bits(placed.unflatten(2, (len(blocks), array.shape[3])).transpose(1, 2))

    def copy(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for array in self.groups[group].values():
            bits(array)[:, _ids(targets, array)] = bits(array)[:, _ids(sources, array)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the CPU by NumPy: unlike torch it takes no page of memory that nobody touches."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)


def _ids(blocks: Sequence[int], array: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(blocks), dtype=torch.int64).to(array.device)
