"""State as a pytree: a step traces over one, rebinds its arrays, and hands it back; its host object takes over the new arrays."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ....errors import CapacityError, SpecError
from ....ops import DTYPES, BatchShape, StateGroup
from .devices import AXIS, PARTS, WHOLE, Devices

Arrays = dict[str, jax.Array]

jax.tree_util.register_static(BatchShape)


class Cell:
    """One layer's state: `k`, `v` [blocks, kv_heads, block_tokens, dim], or whatever names its group gives."""

    def __init__(self, group: int, arrays: Mapping[str, jax.Array]) -> None:
        self.group = group
        self.__dict__.update(arrays)

    @property
    def arrays(self) -> Arrays:
        return {name: array for name, array in self.__dict__.items() if name != "group"}


@jax.tree_util.register_pytree_node_class
class JaxState:
    """`state[layer]` is that layer's cell. A recurrent group's blocks are slots of one token."""

    last_token: jax.Array
    """[slots + 1] int32."""

    def __init__(self, last_token: jax.Array, cells: Mapping[int, Cell]) -> None:
        self.last_token, self._cells = last_token, cells

    @classmethod
    def zeros(cls, devices: Devices, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> JaxState:
        """For each device its own, in the sizes that are given. Raises `CapacityError` where its memory is too small."""
        cells: dict[int, Cell] = {}
        for index, (group, count) in enumerate(zip(groups, blocks, strict=True)):
            count, tokens = (count, group.block_tokens) if group.kind == "paged" else (slots + 1, 1)
            for layer in group.layers:
                if layer in cells:
                    raise SpecError(f"layer {layer} is in two state groups, {group.name!r} and another; a layer has one cell")
                try:
                    cells[layer] = Cell(index, {
                        name: _zeros(devices, (count, one.heads, tokens, one.dim), one.dtype)
                        for name, one in group.arrays.items()
                    })
                except RuntimeError as error:
                    told = f"{count} blocks of state group {group.name!r} do not fit on {devices.devices[0]}; ask for fewer"
                    raise CapacityError(f"{told}: {error}") from error
        return cls(_zeros(devices, (slots + 1,), "int32"), cells)

    def __getitem__(self, layer: int) -> Cell:
        return self._cells[layer]

    def group(self, index: int) -> list[Arrays]:
        """The arrays of a group's layers, in the group's order."""
        return [cell.arrays for cell in self._cells.values() if cell.group == index]

    def replace_group(self, index: int, arrays: Sequence[Arrays]) -> None:
        cells = [cell for cell in self._cells.values() if cell.group == index]
        for cell, new in zip(cells, arrays, strict=True):
            cell.__dict__.update(new)

    def adopt(self, after: JaxState) -> None:
        """Take over what a step made of the arrays that it was given and consumed."""
        self.last_token, self._cells = after.last_token, after._cells

    def tree_flatten(self) -> tuple[Any, Any]:
        arrays = [cell.arrays for cell in self._cells.values()]
        return (self.last_token, arrays), tuple((layer, cell.group) for layer, cell in self._cells.items())

    @classmethod
    def tree_unflatten(cls, places: Any, children: Any) -> JaxState:
        last_token, arrays = children
        return cls(last_token, {layer: Cell(group, one) for (layer, group), one in zip(places, arrays, strict=True)})


def _zeros(devices: Devices, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.zeros((shape[0] * devices.count, *shape[1:]), DTYPES[dtype], device=devices.parts)


class Blocks:
    """Whole blocks in and out of states, as programs that are compiled once. In canonical form a device's heads follow the last one's."""

    def __init__(self, devices: Devices) -> None:
        values = P(None, AXIS)
        self._read = jax.jit(devices.each(_read, (PARTS, WHOLE), values))
        self._write = jax.jit(devices.each(_write, (PARTS, WHOLE, values), PARTS), donate_argnums=0)
        self._copy = jax.jit(devices.each(_copy, (PARTS, WHOLE, WHOLE), PARTS), donate_argnums=0)

    def read(self, state: JaxState, group: int, blocks: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        """Canonical: for each array [layers, heads, tokens, dim]."""
        found = jax.device_get(self._read(state.group(group), _padded(blocks)))
        return {name: np.stack([_canonical(layer[name][: len(blocks)]) for layer in found]) for name in found[0]}

    def write(self, state: JaxState, group: int, blocks: Sequence[int], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        layers, ids = state.group(group), _padded(blocks)
        values = [{name: _paged(arrays[name][i], len(blocks), len(ids)) for name in layer} for i, layer in enumerate(layers)]
        state.replace_group(group, self._write(layers, ids, values))

    def copy(self, state: JaxState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        state.replace_group(group, self._copy(state.group(group), _padded(sources), _padded(targets)))


def _read(layers: list[Arrays], ids: Any) -> list[Arrays]:
    return jax.tree.map(lambda array: array[ids], layers)


def _write(layers: list[Arrays], ids: Any, values: list[Arrays]) -> list[Arrays]:
    return jax.tree.map(lambda array, value: array.at[ids].set(value), layers, values)


def _copy(layers: list[Arrays], sources: Any, targets: Any) -> list[Arrays]:
    return jax.tree.map(lambda array: array.at[targets].set(array[sources]), layers)


def _padded(blocks: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Block ids, and the null block up to a power of two, so that few programs are compiled."""
    ids = np.zeros(1 << max(0, len(blocks) - 1).bit_length(), np.int32)
    ids[: len(blocks)] = blocks
    return ids


def _canonical(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[blocks, heads, block_tokens, dim] -> [heads, tokens, dim]."""
    swapped = array.swapaxes(0, 1)
    return np.ascontiguousarray(swapped).reshape(swapped.shape[0], -1, swapped.shape[-1])


def _paged(array: np.ndarray[Any, Any], blocks: int, padded: int) -> np.ndarray[Any, Any]:
    """[heads, tokens, dim] -> [padded, heads, block_tokens, dim], zeros behind `blocks`."""
    heads, tokens, dim = array.shape
    made = np.zeros((padded, heads, tokens // blocks, dim), array.dtype)
    made[:blocks] = array.reshape(heads, blocks, -1, dim).swapaxes(0, 1)
    return made
