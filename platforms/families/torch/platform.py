"""The part of the contract that every torch platform shares. A platform adds its name, probe, capabilities and device.

torch is imported inside the methods: a subclass is loaded, and its `probe` asked, where torch may be missing.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ops import BatchShape, Kernel, Packed, StateGroup, unpack
from ...contract import HostArrays, Memory, Options, Pending, Platform, Step, World

if TYPE_CHECKING:
    import torch

    from .collectives import TorchCollectives
    from .launch import Launcher
    from .state import TorchState


class TorchPlatform(Platform):
    """Tensors on one `torch.device`. Steps run in the order of submission; state is written in place.

    To subclass: `find_device`, `probe`, `capabilities`; then what the device does better: `kernels` (put before these),
    `launcher` (another queue), `compile` (a captured graph).
    """

    parallel = "gloo between processes on the CPU; NCCL and RCCL: never run"
    device: torch.device

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.device = self.find_device(options)
        self.steps = self.launcher()

    @abstractmethod
    def find_device(self, options: Options) -> torch.device:
        """The device that the options mean, `options.rank` further on; raises `ConfigError` for options that mean nothing here."""

    def launcher(self) -> Launcher:
        from .launch import QueueLauncher, ThreadLauncher

        return ThreadLauncher() if self.device.type == "cpu" else QueueLauncher(self.device)

    def kernels(self) -> Sequence[Kernel]:
        from .kernels import kernels

        return kernels(self.device)

    def put(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        from .arrays import tensor

        return tensor(host).to(self.device)

    def fetch(self, array: torch.Tensor) -> np.ndarray[Any, Any]:
        from .arrays import host

        made: np.ndarray[Any, Any] = self.steps.finish(lambda: host(array).copy())
        return made

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> TorchState:
        from .state import TorchState

        return TorchState(self.device, groups, blocks, slots)

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """The step over the two staged buffers: compiled(weights, state, integers, floats)."""
        def eager(weights: Any, state: Any, integers: Any, floats: Any) -> Any:
            return step(weights, state, *unpack(shape, integers, floats))

        return eager

    def submit(self, compiled: Any, weights: Any, state: TorchState, packed: Packed) -> Pending:
        from .arrays import tensor

        integers, floats = (self.steps.stage(tensor(part)) for part in (packed.integers, packed.floats))
        return self.steps.start(lambda: compiled(weights, state, integers, floats))

    def read_blocks(self, state: TorchState, group: int, blocks: Sequence[int]) -> HostArrays:
        made: HostArrays = self.steps.finish(lambda: state.read(group, blocks))
        return made

    def write_blocks(self, state: TorchState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        self.steps.finish(lambda: state.write(group, blocks, arrays))

    def copy_blocks(self, state: TorchState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.steps.finish(lambda: state.copy(group, sources, targets))

    def memory(self) -> Memory:
        """The device's, or the host's where torch computes on it."""
        if self.device.type == "cpu":
            import psutil

            found = psutil.virtual_memory()
            return Memory(total=found.total, free=found.available)
        import torch

        free, total = torch.accelerator.get_memory_info(self.device)
        return Memory(total=total, free=free)

    def collectives(self, world: World) -> TorchCollectives:
        from .collectives import TorchCollectives

        return TorchCollectives(self.device, world)

    def close(self) -> None:
        self.steps.close()
