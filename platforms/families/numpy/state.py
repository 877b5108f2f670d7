"""Paged state in host memory, written in place."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....ops import DTYPES, StateGroup

Array = np.ndarray[Any, Any]


class Cell:
    """One layer's state: `k`, `v` [blocks, kv_heads, block_tokens, dim] as the group names them."""

    __slots__ = ("__dict__", "group")

    def __init__(self, group: int, arrays: Mapping[str, Array]) -> None:
        self.group = group
        self.__dict__.update(arrays)


class HostState:
    """`state[layer]` is that layer's cell; a group's arrays are `[layers, blocks, heads, block_tokens, dim]`."""

    def __init__(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> None:
        self.last_token: Array = np.zeros(slots + 1, np.int32)
        self.groups: list[dict[str, Array]] = []
        cells: dict[int, Cell] = {}
        for index, (group, count) in enumerate(zip(groups, blocks, strict=True)):
            arrays = {
                name: np.zeros((len(group.layers), count, array.heads, group.block_tokens, array.dim), DTYPES[array.dtype])
                for name, array in group.arrays.items()
            }
            self.groups.append(arrays)
            for place, layer in enumerate(group.layers):
                cells[layer] = Cell(index, {name: array[place] for name, array in arrays.items()})
        self.cells = [cells[layer] for layer in sorted(cells)]

    def __getitem__(self, layer: int) -> Cell:
        return self.cells[layer]

    def read(self, group: int, blocks: Sequence[int]) -> dict[str, Array]:
        """Canonical: for each array `[layers, heads, tokens, dim]`."""
        return {name: _canonical(array[:, list(blocks)]) for name, array in self.groups[group].items()}

    def write(self, group: int, blocks: Sequence[int], arrays: Mapping[str, Array]) -> None:
        for name, array in self.groups[group].items():
            layers, _, heads, block_tokens, dim = array.shape
            paged = arrays[name].reshape(layers, heads, len(blocks), block_tokens, dim)
            array[:, list(blocks)] = paged.transpose(0, 2, 1, 3, 4)

    def copy(self, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for array in self.groups[group].values():
            array[:, list(targets)] = array[:, list(sources)]


def _canonical(array: Array) -> Array:
    layers, blocks, heads, block_tokens, dim = array.shape
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3, 4)).reshape(layers, heads, blocks * block_tokens, dim)
