"""From global sizes to one device's: specs and weights divided along their logical axes."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import SpecError
from ..ops import Attention, Dim, Linear, Moe, Quantized, Router, Spec, Tensor

SHARDED = ("heads", "kv_heads", "mlp", "vocab", "experts")


@dataclass(frozen=True)
class Mesh:
    """How many ways each logical axis is divided, and which part is ours. The default is one device."""

    ways: Mapping[str, int]
    rank: int = 0

    @classmethod
    def single(cls) -> Mesh:
        return cls({})

    @classmethod
    def tensor_parallel(cls, ways: int, rank: int) -> Mesh:
        return cls(dict.fromkeys(SHARDED, ways), rank)

    def divide(self, size: int, axis: str | None, what: str) -> int:
        ways = self.ways.get(axis or "", 1)
        if size % ways:
            raise SpecError(f"{what}: {axis} of size {size} does not divide {ways} ways; use a divisor of {size}")
        return size // ways


def local_spec(spec: Any, mesh: Mesh) -> Any:
    """The spec in this device's sizes; a linear whose input axis is divided has `reduce` set."""
    if not mesh.ways:
        return spec
    if isinstance(spec, Attention) and spec.alibi is not None and mesh.ways.get(spec.heads.axis or "", 1) > 1:
        raise SpecError(f"attention: {spec.heads.size} heads have alibi slopes, which are not divided among devices yet; use one device")
    if isinstance(spec, (Router, Moe)) and any(mesh.ways.get(axis or "", 1) > 1 for axis in ("experts", "mlp")):
        raise SpecError(f"{spec.op}: {spec.experts.size} experts are not divided among devices yet; use one device")
    changed = {f.name: _local(getattr(spec, f.name), mesh, spec.op) for f in fields(spec)}
    if isinstance(spec, Linear) and mesh.ways.get(spec.input.axis or "", 1) > 1:
        changed["reduce"] = True
    return replace(spec, **changed)


def _local(value: Any, mesh: Mesh, op: str) -> Any:
    if isinstance(value, Dim):
        return Dim(mesh.divide(value.size, value.axis, op), value.axis)
    if isinstance(value, Spec):
        return local_spec(value, mesh)
    if isinstance(value, tuple):
        return tuple(_local(item, mesh, op) for item in value)
    return value


def local_tensor(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
    """This device's part of a checkpoint tensor: a view. Raises `SpecError` for a quantized one that would be divided."""
    if isinstance(array, Quantized):
        if mesh.ways:
            raise SpecError(f"{tensor.name} is quantized, and quantized weights are not divided among devices yet; use one device")
        return array
    for dimension, (size, axis) in enumerate(zip(tensor.shape, tensor.axes, strict=True)):
        ours = mesh.divide(size, axis, tensor.name)
        if ours != size:
            array = array[(slice(None),) * dimension + (slice(mesh.rank * ours, (mesh.rank + 1) * ours),)]
    return array
