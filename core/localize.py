"""From global sizes to one device's: specs, state and weights divided along their logical axes, and how results are joined again."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, SpecError
from ..ops import Attention, Dim, Embedding, Linear, Moe, Quantized, Sample, Scheme, Spec, StateGroup, Tensor
from ..platforms.contract import HostArrays

DIVIDED = ("heads", "mlp")
"""Axes that every device gets an equal part of."""
LOOKUP = "lookup"
"""The columns of an embedding: a row is gathered from the devices, so that no token needs a mask."""
NARROW = ("bfloat16", "float16")

Joining = Literal["sum", "gather"]
"""What devices do with their results: add them up, or put them one behind the other along the last axis."""


@dataclass(frozen=True)
class Mesh:
    """How many ways each logical axis is divided, and which device of how many is ours. The default is one device.

    An axis with fewer ways than devices is held by several of them: device r has part r * ways // size.
    """

    ways: Mapping[str, int]
    rank: int = 0
    size: int = 1

    @classmethod
    def single(cls) -> Mesh:
        return cls({})

    @classmethod
    def of(cls, specs: Iterable[Spec], size: int, rank: int) -> Mesh:
        """Of a model's specs on `size` devices. Raises `ConfigError` where they cannot be divided so.

        Key/value heads that are fewer than the devices are held by several; a vocabulary or an embedding that does not
        divide is held by each.
        """
        if size == 1:
            return cls.single()
        sizes = _axis_sizes(specs)
        ways = _ways(sizes, size)
        if isinstance(ways, str):
            fitting = [str(n) for n in range(1, max(sizes["heads"], default=1) + 1) if not isinstance(_ways(sizes, n), str)]
            raise ConfigError(f"tensor_parallel {size} was asked for, and {ways}; use one of {', '.join(fitting)}")
        return cls(ways, rank, size)

    def divide(self, size: int, axis: str | None, what: str) -> int:
        ways = self.ways.get(axis or "", 1)
        if size % ways:
            raise SpecError(f"{what}: {axis} of size {size} does not divide {ways} ways; use a divisor of {size}")
        return size // ways

    def ours(self, size: int, axis: str | None, what: str) -> slice:
        """Our stretch of an axis of `size`."""
        each = self.divide(size, axis, what)
        part = self.rank * self.ways.get(axis or "", 1) // self.size
        return slice(part * each, (part + 1) * each)


def _ways(sizes: Mapping[str, set[int]], devices: int) -> dict[str, int] | str:
    """The ways of each axis, or why there are none."""
    ways = {}
    for axis in DIVIDED:
        if wrong := [size for size in sizes[axis] if size % devices]:
            return f"this model's {axis} of size {min(wrong)} do not divide {devices} ways"
        ways[axis] = devices
    heads = min(sizes["kv_heads"], default=devices)
    if heads % devices and devices % heads:
        return f"this model's {heads} key/value heads can neither be divided among {devices} devices nor held by an equal number of them"
    ways["kv_heads"] = min(heads, devices)
    for axis in ("vocab", LOOKUP):
        ways[axis] = 1 if any(size % devices for size in sizes[axis]) else devices
    return ways


def _axis_sizes(specs: Iterable[Spec]) -> dict[str, set[int]]:
    sizes: dict[str, set[int]] = {axis: set() for axis in (*DIVIDED, "kv_heads", "vocab", LOOKUP)}

    def collect(value: Any) -> None:
        if isinstance(value, Dim):
            sizes.get(value.axis or "", set()).add(value.size)
        elif isinstance(value, Spec):
            for field in fields(value):  # type: ignore[arg-type]
                collect(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                collect(item)
        if isinstance(value, Embedding):
            sizes[LOOKUP].add(value.size)

    for spec in specs:
        collect(spec)
    return sizes


def local_spec(spec: Any, mesh: Mesh) -> Any:
    """The spec in this device's sizes. What is added up over devices comes in float32: the sum is rounded, not its parts."""
    if not mesh.ways or isinstance(spec, Sample):
        return spec
    if isinstance(spec, Embedding):
        return replace(spec, size=mesh.divide(spec.size, LOOKUP, spec.op))
    changed = {field.name: _local(getattr(spec, field.name), mesh, spec.op) for field in fields(spec)}
    if isinstance(spec, Attention) and spec.alibi is not None:
        changed["alibi"] = spec.alibi[mesh.ours(spec.heads.size, spec.heads.axis, spec.op)]
    if isinstance(spec, Linear):
        if spec.scheme is not None:
            _check_borders(spec, spec.scheme, mesh)
        if changed["input"] != spec.input and (spec.out_dtype or spec.dtype) in NARROW:
            changed["out_dtype"] = "float32"
    return replace(spec, **changed)


def require_alike(specs: Iterable[Spec], mesh: Mesh, other: Mesh) -> None:
    """Raise `ConfigError` where two devices would compute by different specs: the devices of one process run one program."""
    for spec in specs:
        if local_spec(spec, mesh) != local_spec(spec, other):
            raise ConfigError(f"tensor_parallel {mesh.size} was asked for, and devices of one process run one program, while the {spec.op} "
                              f"of device {other.rank} is not that of device {mesh.rank} ({spec}). Use one device, or another platform.")


def joining(spec: Any, local: Any) -> Joining | None:
    """How the results of the local spec become that of the global one; None: they are this device's part, or the whole."""
    if isinstance(spec, Linear) and local.input != spec.input:
        return "sum"
    if isinstance(spec, Moe) and local.mlp != spec.mlp:
        return "sum"
    if isinstance(spec, Linear) and any(one.axis == "vocab" and one != part for one, part in zip(spec.outputs, local.outputs, strict=True)):
        return "gather"
    return "gather" if isinstance(spec, Embedding) and local.size != spec.size else None


def local_groups(groups: Sequence[StateGroup], mesh: Mesh) -> tuple[StateGroup, ...]:
    """State groups as this device holds them."""
    return tuple(
        replace(group, arrays={
            name: replace(array, heads=mesh.divide(array.heads, array.axis, group.name)) for name, array in group.arrays.items()
        }) for group in groups
    )


def joined_blocks(parts: Sequence[HostArrays], group: StateGroup, mesh: Mesh) -> HostArrays:
    """Blocks in canonical form out of each device's part, in the order of ranks. group: in global sizes."""
    def joined(name: str, axis: str | None) -> np.ndarray[Any, Any]:
        holders = mesh.size // mesh.ways.get(axis or "", 1)
        return np.concatenate([part[name] for part in parts[::holders]], axis=1)

    return {name: joined(name, array.axis) for name, array in group.arrays.items()}


def split_blocks(arrays: HostArrays, size: int) -> list[HostArrays]:
    """Each device's part, where one process gave those of all behind each other."""
    parts = {name: np.split(array, size, axis=1) for name, array in arrays.items()}
    return [{name: part[rank] for name, part in parts.items()} for rank in range(size)]


def local_blocks(arrays: HostArrays, group: StateGroup, mesh: Mesh) -> HostArrays:
    """This device's part of blocks in canonical form."""
    return {name: arrays[name][:, mesh.ours(array.heads, array.axis, group.name)] for name, array in group.arrays.items()}


def _local(value: Any, mesh: Mesh, op: str) -> Any:
    if isinstance(value, Dim):
        return Dim(mesh.divide(value.size, value.axis, op), value.axis)
    if isinstance(value, Spec):
        return local_spec(value, mesh)
    if isinstance(value, tuple):
        return tuple(_local(item, mesh, op) for item in value)
    return value


def _check_borders(spec: Linear, scheme: Scheme, mesh: Mesh) -> None:
    """Raise `SpecError` where a device's part would begin in the middle of a group that shares a scale."""
    def check(dim: Dim, group: int | None, what: str) -> None:
        part = mesh.divide(dim.size, dim.axis, spec.op)
        if part != dim.size and group is not None and part % group:
            raise SpecError(f"linear: {dim.axis} of size {dim.size} on {mesh.size} devices leaves {part} for each, within a group "
                            f"of {group} {what} under {scheme}; use fewer devices, or a scheme whose groups divide {part}")

    for output in spec.outputs:
        check(output, scheme.rows, "outputs")
    check(spec.input, scheme.group, "inputs")
    if scheme.activation is not None:
        check(spec.input, scheme.activation_group, "activations")
        if scheme.activation_group is None and mesh.ways.get(spec.input.axis or "", 1) > 1:
            raise SpecError(f"linear: under {scheme} a token's {spec.input.size} activations share one scale, and no device of {mesh.size} "
                            "sees them all; use one device, or a scheme with groups of activations (int8:a8g128)")


def cut(tensor: Tensor, mesh: Mesh) -> tuple[slice, ...]:
    """This device's stretch of each dimension."""
    return tuple(mesh.ours(size, axis, tensor.name) for size, axis in zip(tensor.shape, tensor.axes, strict=True))


def local_tensor(array: Any, tensor: Tensor, mesh: Mesh) -> Any:
    """This device's part of a tensor of floats: a view."""
    return array[cut(tensor, mesh)] if mesh.ways else array


def local_codes(whole: Quantized, scheme: Scheme, tensor: Tensor, mesh: Mesh) -> Quantized:
    """This device's part of a quantized weight; its borders are those of groups, or inside one that all share."""
    if not mesh.ways:
        return whole
    places = cut(tensor, mesh)
    held = tuple(
        slice(None) if group is None else slice(place.start // group, -(-place.stop // group))
        for place, group in zip(places, (scheme.rows, scheme.group), strict=True)
    )
    return Quantized(whole.codes[places], whole.scales[held], None if whole.zeros is None else whole.zeros[held])


def once(bias: Any, tensor: Tensor, mesh: Mesh) -> Any:
    """A bias behind a sum over devices: rank 0's, and zeros elsewhere. One that is divided is each device's own."""
    return np.zeros_like(bias) if mesh.rank and bias.shape == tensor.shape else bias


def shares_scales(scheme: Scheme, tensor: Tensor, mesh: Mesh) -> bool:
    """Whether devices hold parts of one group, so that the codes of a part can only come from the whole."""
    return any(
        group is None and place != slice(0, size)
        for place, size, group in zip(cut(tensor, mesh), tensor.shape, (scheme.rows, scheme.group), strict=True)
    )
