"""One op with its inputs, on the host: what a kernel is given, and what the oracle says to it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from ..ops import Packed, Quantized, Spec, StateGroup, unpack

Array = np.ndarray[Any, Any]


class Given(Enum):
    """Arguments that are not arrays of the problem's own."""

    WEIGHT = "weight"
    BATCH = "batch"
    CELL = "cell"
    STATE = "state"
    SAMPLING = "sampling"


@dataclass(frozen=True)
class Paged:
    """The KV memory around a problem: one group of one layer, `blocks` blocks with null block 0.

    arrays: name -> [blocks, kv_heads, block_tokens, dim]. live [blocks, block_tokens]: which slots hold something that
    may be read; all others are poisoned. written: slots that the op writes.
    """

    group: StateGroup
    arrays: Mapping[str, Array]
    live: Array
    written: Array

    def poisoned(self, value: float | None, random: np.random.Generator) -> Paged:
        """The same memory with its dead slots set to `value`, or to finite garbage (None). Integers have no NaN: always garbage."""
        arrays = {}
        for name, array in self.arrays.items():
            arrays[name] = np.where(self.live[:, None, :, None], array, _poison(array, value, random))
        return replace(self, arrays=arrays)

    def moved(self, order: Array) -> Paged:
        """Block b moves to order[b]."""
        def placed(array: Array) -> Array:
            out = np.empty_like(array)
            out[order] = array
            return out

        return replace(self, arrays={name: placed(array) for name, array in self.arrays.items()},
                       live=placed(self.live), written=placed(self.written))


@dataclass(frozen=True)
class Problem:
    """`spec` on `arguments`: host arrays, None for what an op goes without, and `Given` for the rest."""

    spec: Spec
    arguments: tuple[Any, ...]
    weight: tuple[Any, ...] = ()
    """Host arrays; of a quantized linear `Quantized`, and arrays of biases."""
    packed: Packed | None = None
    paged: Paged | None = None
    last_token: Array | None = None
    """[slots + 1] int32: the state's last tokens before the step."""
    naive: Callable[..., Any] | None = None
    """A plain evaluation in the problem's own dtype, called as the reference is: for composites."""
    held: Callable[..., Mapping[str, Array]] | None = None
    """Called as the reference is: name -> the magnitude of what arithmetic left in that array of the memory; the others hold exact bits."""
    rows: int = 0
    """Rows that can be tried alone."""
    alone: Callable[[int], tuple[Problem, Any]] | None = None
    """row -> (the problem of that row alone, where its results lie in the whole's)."""
    view: Callable[[Any], Any] = lambda result: result
    """The arrays of a result that is more than arrays."""

    @property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(argument for argument in self.arguments if isinstance(argument, np.ndarray))

    def other(self) -> Problem:
        """The same shapes, other numbers."""
        moved = tuple(elsewhere(one) if isinstance(one, np.ndarray) else one for one in self.arguments)
        return replace(self, arguments=moved, rows=0, alone=None)

    def with_memory(self, paged: Paged) -> Problem:
        return replace(self, paged=paged)

    def moved(self, order: Array) -> Problem:
        """Block b of the memory lies at order[b], and every table and slot says so."""
        assert self.paged is not None
        return replace(self.renumbered(order), paged=self.paged.moved(order))

    def renumbered(self, order: Array) -> Problem:
        """Every table and slot says order[b] for block b; the memory stays as it is."""
        assert self.packed is not None and self.paged is not None
        packed = self.packed._replace(integers=self.packed.integers.copy())
        rows = unpack(*packed)[0].groups[0]
        size = self.paged.group.block_tokens
        rows.table[:] = order[rows.table]
        rows.slots[:] = order[rows.slots // size] * size + rows.slots % size
        return replace(self, packed=packed)

    def fill(self, given: Mapping[Given, Any], arrays: tuple[Any, ...]) -> list[Any]:
        """The arguments in their order, from a platform's own arrays."""
        left = iter(arrays)
        def filled(argument: Any) -> Any:
            return given[argument] if isinstance(argument, Given) else None if argument is None else next(left)

        return [filled(argument) for argument in self.arguments]

    def host_arguments(self) -> tuple[list[Any], Any, Any]:
        """(arguments for the reference, its cell, its state); the cell and the state are copies that it may write."""
        cell = SimpleNamespace(group=0, **{name: array.copy() for name, array in (self.paged.arrays if self.paged else {}).items()})
        state = SimpleNamespace(last_token=None if self.last_token is None else self.last_token.copy())
        given: dict[Given, Any] = {Given.WEIGHT: self.weight, Given.CELL: cell, Given.STATE: state, Given.BATCH: None, Given.SAMPLING: None}
        if self.packed is not None:
            given[Given.BATCH], given[Given.SAMPLING] = unpack(*self.packed)
        return self.fill(given, self.arrays), cell, state


def _poison(like: Array, value: float | None, random: np.random.Generator) -> Array:
    """In the shape and dtype of `like`: `value` where the dtype has it, or finite garbage."""
    if like.dtype.kind == "i":
        info = np.iinfo(like.dtype)
        return random.integers(info.min, info.max, like.shape, endpoint=True).astype(like.dtype)
    fill = random.normal(0, 1e3, like.shape) if value is None else np.full(like.shape, value)
    most = float(ml_dtypes.finfo(like.dtype).max)
    return np.asarray(fill if value is not None else np.clip(fill, -most, most), like.dtype)


def elsewhere(array: Array) -> Array:
    """Other numbers, as valid as these: the same ones at other places."""
    return np.roll(array[::-1], 1, axis=-1) if array.ndim else array


def other_weight(part: Any) -> Any:
    """Another weight of the same shape; of a quantized one, with other codes, scales and zero points."""
    if not isinstance(part, Quantized):
        return elsewhere(part)
    return Quantized(elsewhere(part.codes), elsewhere(part.scales) * 2, None if part.zeros is None else elsewhere(part.zeros))
