"""The part of the contract that every JAX platform shares. A platform adds its name, probe, capabilities and device.

JAX is imported inside the methods: a subclass is loaded, and its `probe` asked, where JAX may be missing.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ops import BatchShape, Kernel, Packed, StateGroup, unpack
from ...contract import Buckets, HostArrays, Memory, Options, Pending, Platform, Step

if TYPE_CHECKING:
    import jax

    from .state import JaxState

BUCKETS = Buckets(
    tokens=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    rows=(1, 8, 16, 32, 64, 128, 256, 512),
    samples=(1, 8, 16, 32, 64, 128, 256, 512),
    blocks=(4, 16, 64, 256, 1024),
)
"""Where shapes are compiled: each step is a program of its own size, so the sizes are few."""


class JaxPlatform(Platform):
    """Arrays on one JAX device. JAX runs what is submitted in order and without waiting; the state is donated to each step.

    To subclass: `find_device`, `probe`, `capabilities` (with `buckets`); then `kernels` that go before these.
    """

    device: jax.Device

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.device = self.find_device(options)

    @abstractmethod
    def find_device(self, options: Options) -> jax.Device:
        """The device that the options mean; raises `ConfigError` for options that mean nothing here."""

    def kernels(self) -> Sequence[Kernel]:
        from .kernels import kernels

        return kernels(self.device)

    def put(self, host: np.ndarray[Any, Any]) -> jax.Array:
        import jax

        return jax.device_put(np.array(host), self.device)

    def fetch(self, array: jax.Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> JaxState:
        from .state import JaxState

        return JaxState.zeros(self.device, groups, blocks, slots)

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """(weights, state, integers, floats) -> (what the step returns, the state after it), jitted with the state donated."""
        import jax

        def whole(weights: Any, state: JaxState, integers: Any, floats: Any) -> tuple[Any, JaxState]:
            return step(weights, state, *unpack(shape, integers, floats)), state

        return jax.jit(whole, donate_argnums=1)

    def submit(self, compiled: Any, weights: Any, state: JaxState, packed: Packed) -> Pending:
        integers, floats = self.put(packed.integers), self.put(packed.floats)
        made, after = compiled(weights, state, integers, floats)
        state.adopt(after)
        return _Fetching(made)

    def read_blocks(self, state: JaxState, group: int, blocks: Sequence[int]) -> HostArrays:
        from .state import read

        return read(state, group, blocks)

    def write_blocks(self, state: JaxState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        from .state import write

        write(state, group, blocks, arrays)

    def copy_blocks(self, state: JaxState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        from .state import copy

        copy(state, group, sources, targets)

    def memory(self) -> Memory:
        """The device's, or the host's where JAX computes on it."""
        found = self.device.memory_stats()
        if found and "bytes_limit" in found:
            return Memory(total=found["bytes_limit"], free=found["bytes_limit"] - found["bytes_in_use"])
        import psutil

        host = psutil.virtual_memory()
        return Memory(total=host.total, free=host.available)


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
