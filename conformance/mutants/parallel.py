"""Devices that work together wrongly: the reference platform on threads, their sums and parts, and how the core divides a model."""
from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from ...core import loader, localize, resolve
from ...core.localize import Mesh, joining, local_codes, local_tensor
from ...ops import DTYPES, Moe, Quantized, Scheme, Tensor
from ...platforms.contract import Options, World
from .plant import MutantPlatform, Variant

Array = np.ndarray[Any, Any]
Parts = Sequence[Array]
Reduce = Callable[[Parts, int, Any], Array]
"""(each device's array, our rank, dtype) -> the sum."""
Gather = Callable[[Parts, int], Array]
OURS = "our own"


class Table:
    """Where the threads of one world lay down their arrays for each other."""

    tables: ClassVar[dict[str, Table]] = {}
    lock = threading.Lock()

    def __init__(self, size: int) -> None:
        self.barrier, self.arrays = threading.Barrier(size), [np.zeros(0)] * size

    @classmethod
    def of(cls, world: World) -> Table:
        with cls.lock:
            return cls.tables.setdefault(str(world.meeting), cls(world.size))

    def exchange(self, rank: int, array: Array) -> Parts:
        self.arrays[rank] = array.copy()
        self.barrier.wait()
        parts = list(self.arrays)
        self.barrier.wait()
        return parts


def add_up(parts: Parts, rank: int, dtype: Any) -> Array:
    total = parts[0].astype(np.float64 if parts[0].dtype == np.float64 else np.float32)
    for part in parts[1:]:
        total = total + part.astype(total.dtype)
    return total.astype(dtype)


def join(parts: Parts, rank: int) -> Array:
    return np.concatenate(parts, axis=-1)


class Threads:
    """`contract.Collectives` between threads."""

    def __init__(self, world: World, reduce: Reduce, gather: Gather) -> None:
        self.rank, self.table, self.reduce, self.gather = world.rank, Table.of(world), reduce, gather

    def all_reduce(self, array: Array, dtype: str) -> Array:
        return self.reduce(self.table.exchange(self.rank, array), self.rank, DTYPES[dtype])

    def all_gather(self, array: Array) -> Array:
        return self.gather(self.table.exchange(self.rank, array), self.rank)

    def abort(self) -> None:
        self.table.barrier.abort()

    def close(self) -> None:
        with Table.lock:
            Table.tables = {key: table for key, table in Table.tables.items() if table is not self.table}


class Together(MutantPlatform):
    """The reference platform on several threads."""

    parallel = "threads of one process"

    def __init__(self, reduce: Reduce = add_up, gather: Gather = join) -> None:
        super().__init__(Options())
        self.reduce, self.gather = reduce, gather

    def collectives(self, world: World) -> Threads:
        return Threads(world, self.reduce, self.gather)


def _variant(name: str, source: str, change: Callable[[], AbstractContextManager[Any]] = nullcontext, **ways: Any) -> Variant:
    return Variant(f"parallel.{name}", "parallel", source, partial(Together, **ways), ("parallel.",), change)


# Sums and parts.

def _rounded_between(parts: Parts, rank: int, dtype: Any) -> Array:
    total = parts[0].astype(dtype)
    for part in parts[1:]:
        total = (total + part.astype(dtype)).astype(dtype)
    return total


def _from_our_own_on(parts: Parts, rank: int, dtype: Any) -> Array:
    """Each device begins with itself: no two get the same bits."""
    return add_up([*parts[rank:], *parts[:rank]], rank, dtype)


def _by_the_largest_row(parts: Parts, rank: int, dtype: Any) -> Array:
    """The order of the sum depends on what else is in the batch."""
    return add_up(parts[::-1] if len(parts[0]) % 2 else parts, rank, dtype)


# How the core divides.

def _changed(owner: Any, member: str, wrong: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(owner, member, wrong)


def _elsewhere(word: str, rank: Callable[[Mesh], int]) -> Callable[[], AbstractContextManager[Any]]:
    """Tensors with `word` in their name are cut as another device's are."""
    def wrong(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
        return local_tensor(array, tensor, Mesh(mesh.ways, rank(mesh), mesh.size) if word in tensor.name else mesh)

    return _changed(loader, "local_tensor", wrong)


def _not_summed(kind: type[Any]) -> Callable[[], AbstractContextManager[Any]]:
    return _changed(resolve, "joining", lambda spec, local: None if isinstance(spec, kind) and joining(spec, local) == "sum" else
                    joining(spec, local))


def _in_turn(self: Mesh, size: int, axis: str | None, what: str) -> slice:
    """Key/value heads that several devices hold are dealt out one after the other."""
    each = self.divide(size, axis, what)
    part = self.rank % self.ways.get(axis or "", 1)
    return slice(part * each, (part + 1) * each)


def _first_scales(whole: Quantized, scheme: Scheme, tensor: Tensor, mesh: Mesh) -> Quantized:
    first = local_codes(whole, scheme, tensor, Mesh(mesh.ways, 0, mesh.size))
    return local_codes(whole, scheme, tensor, mesh)._replace(scales=first.scales)


def _quantized_after(scheme: Scheme, tensor: Tensor, mesh: Mesh) -> bool:
    """Each device finds scales of its own for rows that it holds a part of."""
    return False


BUGS: Sequence[Variant] = (
    _variant("not_summed", "a linear without its all_reduce", reduce=lambda parts, rank, dtype: parts[rank].astype(dtype)),
    _variant("rounded_between", OURS, reduce=_rounded_between),
    _variant("from_our_own_on", OURS, reduce=_from_our_own_on),
    _variant("order_by_the_batch", OURS, reduce=_by_the_largest_row),
    _variant("sum_not_rounded", OURS, reduce=lambda parts, rank, dtype: add_up(parts, rank, np.dtype(np.float32))),
    _variant("parts_backwards", OURS, gather=lambda parts, rank: np.concatenate(parts[::-1], axis=-1)),
    _variant("parts_as_rows", OURS, gather=lambda parts, rank: np.concatenate(parts).reshape(*parts[0].shape[:-1], -1)),
    _variant("experts_not_summed", OURS, _not_summed(Moe)),
    _variant("keys_of_the_first", "a fused qkv cut as if it were one tensor", _elsewhere("k_proj", lambda mesh: 0)),
    _variant("queries_of_another", OURS, _elsewhere("q_proj", lambda mesh: mesh.size - 1 - mesh.rank)),
    _variant("up_of_another", OURS, _elsewhere("up_proj", lambda mesh: mesh.size - 1 - mesh.rank)),
    _variant("kv_heads_dealt_out", OURS, _changed(localize.Mesh, "ours", _in_turn)),
    _variant("biases_of_each", OURS, _changed(loader, "once", lambda bias, tensor, mesh: bias)),
    _variant("scales_of_the_first", OURS, _changed(loader, "local_codes", _first_scales)),
    _variant("scales_of_a_part", OURS, _changed(loader, "shares_scales", _quantized_after)),
)

LEGAL: Sequence[Variant] = (
    _variant("threads", "the reference"),
    _variant("last_rank_first", "another order, the same for all", reduce=lambda parts, rank, dtype: add_up(parts[::-1], rank, dtype)),
    _variant("in_float64", "wider", reduce=lambda parts, rank, dtype: add_up([part.astype(np.float64) for part in parts], rank, dtype)),
)
