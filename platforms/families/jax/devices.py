"""One device, or several as a mesh that one process holds: where arrays lie, and how a step runs on each device's part.

On a mesh an array is its parts behind each other along the first axis, whatever that axis means to one device: a step under
`shard_map` sees its own part and nothing else, so that it is the program that a device of its own would run.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

AXIS = "devices"
PARTS, WHOLE = P(AXIS), P()
"""How an argument lies on a mesh: as each device's part, or all of it on each."""


class Devices:
    """`devices` in the order of ranks."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.devices = tuple(devices)
        self.mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,)) if len(self.devices) > 1 else None

    @property
    def count(self) -> int:
        return len(self.devices)

    @cached_property
    def parts(self) -> Any:
        return self.sharding(PARTS)

    @cached_property
    def whole(self) -> Any:
        return self.sharding(WHOLE)

    def sharding(self, place: P) -> Any:
        return SingleDeviceSharding(self.devices[0]) if self.mesh is None else NamedSharding(self.mesh, place)

    def each(self, function: Callable[..., Any], given: Any, made: Any) -> Callable[..., Any]:
        """`function` on every device's part. given, made: `PARTS` or `WHOLE` for each argument and result."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=given, out_specs=made, check_vma=False)

    def join(self, handles: Iterable[Any]) -> Any:
        """One tree of arrays from those of each device; each is moved to its device before the next one is made."""
        placed = [jax.device_put(handle, device) for handle, device in zip(handles, self.devices, strict=True)]
        return jax.tree.map(self._joined, *placed)

    def _joined(self, *parts: jax.Array) -> jax.Array:
        if self.mesh is None:
            return parts[0]
        first, *rest = parts[0].shape
        return jax.make_array_from_single_device_arrays((first * self.count, *rest), self.parts, list(parts))
