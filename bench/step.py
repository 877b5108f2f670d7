"""What one step needs of one device, by arithmetic: FLOPs by dtype, and bytes that must be read and written at least once.

    FLOPs = 2 x (values of the linear weights that a token meets) x tokens      (those behind the last state: x samples)
          + 2 x heads x (key_dim + value_dim) x pairs of a query and a key that it sees, for each layer
    bytes = weights, once + keys and values of each row's context, once + those of the new tokens

Sizes are those of one device of a mesh: an axis that is not divided is held, and computed, by each. What devices send each other,
activations, and everything on the host are left out, so that the time is one that no implementation can pass.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from ..core.localize import Mesh, cut
from ..core.trace import Use, trace
from ..model_zoo.base import Model
from ..ops import DTYPES, Attention, Embedding, GatedLinear, HeadLinear, Linear, Moe, StateGroup, Tensor
from ..platforms.contract import Chip
from .roofline import multiplied_dtype, scheme_of, tensor_bytes


class Row(NamedTuple):
    """A row of a step: `new` tokens at the end of `length`."""

    new: int
    length: int

    def pairs(self, window: int | None) -> int:
        """How many (query, key) pairs are computed."""
        return sum(self.seen(place, window) for place in range(self.length - self.new, self.length))

    def seen(self, position: int, window: int | None) -> int:
        return position + 1 if window is None else min(position + 1, window)

    def kept(self, window: int | None) -> int:
        """Tokens whose keys are read."""
        return self.length if window is None else min(self.length, window + self.new - 1)


@dataclass(frozen=True)
class Needs:
    """Of one device."""

    flops: Mapping[str, int]
    """By the dtype that is multiplied."""
    weight_bytes: int
    kv_read_bytes: int
    kv_written_bytes: int

    @property
    def bytes_moved(self) -> int:
        return self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes


@dataclass(frozen=True)
class Time:
    """The least seconds that a step can take, and what they go into: memory or compute."""

    seconds: float
    by: str


def needs(model: Model, mesh: Mesh, rows: Sequence[Row]) -> Needs:
    """Of a step that samples once for each row."""
    traced = trace(model)
    tokens, samples = sum(row.new for row in rows), len(rows)
    flops: dict[str, int] = {}

    def add(dtype: str, count: int) -> None:
        flops[dtype] = flops.get(dtype, 0) + count

    for use in traced.uses:
        add(multiplied_dtype(use, model.dtype), 2 * _met(use, mesh) * (samples if use.sampled else tokens))
    for spec, calls in traced.specs.items():
        if isinstance(spec, Attention):
            heads = mesh.divide(spec.heads.size, spec.heads.axis, spec.op)
            add(model.dtype, 2 * calls * heads * (spec.key_dim + spec.value_dim) * sum(row.pairs(spec.window) for row in rows))
    read = {part.name: (part, use) for use in traced.uses if not isinstance(use.spec, Embedding) for part in use.weight.parts}
    return Needs(
        {dtype: count for dtype, count in flops.items() if count},
        weight_bytes=sum(tensor_bytes(_local(part, mesh), scheme_of(use), model.dtype) for part, use in read.values()),
        kv_read_bytes=sum(_token_bytes(group, mesh) * sum(row.kept(group.window) for row in rows) for group in model.states),
        kv_written_bytes=sum(_token_bytes(group, mesh) * tokens for group in model.states),
    )


def least_time(needed: Needs, chip: Chip) -> Time:
    """What is multiplied in a dtype without a published peak takes no time."""
    memory = needed.bytes_moved / chip.read_bytes_per_second
    compute = sum(count / chip.flops[dtype] for dtype, count in needed.flops.items() if dtype in chip.flops)
    return Time(max(memory, compute), "memory" if memory >= compute else "compute")


def _met(use: Use, mesh: Mesh) -> int:
    """Values of a weight that one token is multiplied with."""
    sizes = [prod(_local(tensor, mesh).shape) for tensor in use.weight.tensors]
    if isinstance(use.spec, Moe):
        return sum(sizes) // use.spec.experts.size * use.spec.top_k
    return sum(sizes) if isinstance(use.spec, (Linear, GatedLinear, HeadLinear)) else 0


def _local(tensor: Tensor, mesh: Mesh) -> Tensor:
    if not mesh.ways:
        return tensor
    return tensor._replace(shape=tuple(place.stop - place.start for place in cut(tensor, mesh)))


def _token_bytes(group: StateGroup, mesh: Mesh) -> int:
    """Of one token, over the group's layers."""
    each = (mesh.divide(one.heads, one.axis, group.name) * one.dim * DTYPES[one.dtype].itemsize for one in group.arrays.values())
    return len(group.layers) * sum(each) if group.kind == "paged" else 0
