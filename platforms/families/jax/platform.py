"""The part of the contract that every JAX platform shares. A platform adds its name, probe, capabilities and device.

JAX is imported inside the methods: a subclass is loaded, and its `probe` asked, where JAX may be missing.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ops import BatchShape, Kernel, Packed, StateGroup, unpack
from ...contract import Buckets, HostArrays, Memory, Options, Pending, Platform, Step, World

if TYPE_CHECKING:
    import jax

    from .collectives import MeshCollectives
    from .state import Blocks, JaxState

BUCKETS = Buckets(
    tokens=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    rows=(1, 8, 16, 32, 64, 128, 256, 512),
    samples=(1, 8, 16, 32, 64, 128, 256, 512),
    blocks=(4, 16, 64, 256, 1024),
)
"""Where shapes are compiled: each step is a program of its own size, so the sizes are few."""


class JaxPlatform(Platform):
    """Arrays on one JAX device, or on several of a mesh. What is submitted runs in order and is not waited for; steps donate the state.

    To subclass: `find_device`, `probe`, `capabilities` (with `buckets`); then `kernels` that go before these.
    """

    one_process = True
    quick_compile: Mapping[str, Any] | None = None
    """XLA's options where compiling takes longer than running: every program is kept on disk, and equal traces share one."""
    device: jax.Device

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options, self.device = options, self.find_device(options)
        if options.cache is not None:
            _keep_programs(options.cache, self.quick_compile is not None)
        self._use([self.device])

    def _use(self, devices: Sequence[jax.Device]) -> None:
        from .devices import Devices
        from .state import Blocks

        self.devices = Devices(devices)
        self.blocks: Blocks = Blocks(self.devices)

    @abstractmethod
    def find_device(self, options: Options) -> jax.Device:
        """The device that the options mean, `options.rank` further on; raises `ConfigError` for options that mean nothing here."""

    def collectives(self, world: World) -> MeshCollectives:
        """From here on `world.size` devices are one mesh."""
        from .collectives import MeshCollectives

        self._use([self.find_device(replace(self.options, rank=rank)) for rank in world.ranks])
        return MeshCollectives()

    def join(self, parts: Iterable[Any]) -> Any:
        return self.devices.join(parts)

    def kernels(self) -> Sequence[Kernel]:
        from .kernels import kernels

        return kernels(self.device)

    def put(self, host: np.ndarray[Any, Any]) -> jax.Array:
        import jax

        return jax.device_put(np.array(host), self.devices.whole)

    def fetch(self, array: jax.Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> JaxState:
        from .state import JaxState

        return JaxState.zeros(self.devices, groups, blocks, slots)

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """(weights, state, integers, floats) -> (what the step returns, the state after it), jitted with the state donated."""
        import jax

        from .devices import PARTS, WHOLE

        def whole(weights: Any, state: JaxState, integers: Any, floats: Any) -> tuple[Any, JaxState]:
            return step(weights, state, *unpack(shape, integers, floats)), state

        program = self.devices.each(whole, (PARTS, PARTS, WHOLE, WHOLE), (WHOLE, PARTS))
        if self.quick_compile is None:
            return jax.jit(program, donate_argnums=1)
        from .programs import shared

        return shared(program, self.devices.devices, self.quick_compile)

    def submit(self, compiled: Any, weights: Any, state: JaxState, packed: Packed) -> Pending:
        integers, floats = self.put(packed.integers), self.put(packed.floats)
        made, after = compiled(weights, state, integers, floats)
        state.adopt(after)
        return _Fetching(made)

    def read_blocks(self, state: JaxState, group: int, blocks: Sequence[int]) -> HostArrays:
        return self.blocks.read(state, group, blocks)

    def write_blocks(self, state: JaxState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        self.blocks.write(state, group, blocks, arrays)

    def copy_blocks(self, state: JaxState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.blocks.copy(state, group, sources, targets)

    def memory(self) -> Memory:
        """Of the device with the least left, or the host's share where JAX computes on it."""
        found = [device.memory_stats() for device in self.devices.devices]
        if all(one and "bytes_limit" in one for one in found):
            return min((Memory(one["bytes_limit"], one["bytes_limit"] - one["bytes_in_use"]) for one in found), key=lambda one: one.free)
        import psutil

        host = psutil.virtual_memory()
        return Memory(total=host.total, free=host.available // self.devices.count)


def _keep_programs(folder: Path, keeps_all: bool) -> None:
    """JAX's own cache on disk, which is the process's; one that is set already stays."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if keeps_all:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class _Fetching:
    """Answers on their way to the host."""

    def __init__(self, made: Any) -> None:
        import jax

        self._made = made
        for array in jax.tree.leaves(made):
            array.copy_to_host_async()

    def result(self) -> Any:
        import jax

        return jax.device_get(self._made)
