"""The part of the contract that every NumPy platform shares: everything but its kernels and its name."""
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil

from ....ops import BatchShape, Packed, StateGroup, unpack
from ...contract import HostArrays, Memory, Options, Platform, Step
from .state import HostState


class HostPlatform(Platform):
    """Device memory is host memory. Steps run in order on one thread, so that the host plans the next one meanwhile."""

    def __init__(self, options: Options) -> None:
        self._steps = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{self.name}-step")

    def put(self, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return host

    def fetch(self, array: Any) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> HostState:
        return HostState(groups, blocks, slots)

    def compile(self, step: Step, shape: BatchShape) -> Step:
        return step

    def submit(self, compiled: Step, weights: Any, state: HostState, packed: Packed) -> Future[Any]:
        batch, sampling = unpack(*packed)
        return self._steps.submit(compiled, weights, state, batch, sampling)

    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        return self._steps.submit(state.read, group, blocks).result()

    def write_blocks(self, state: HostState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        self._steps.submit(state.write, group, blocks, arrays).result()

    def copy_blocks(self, state: HostState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._steps.submit(state.copy, group, sources, targets).result()

    def memory(self) -> Memory:
        found = psutil.virtual_memory()
        return Memory(total=found.total, free=found.available)

    def close(self) -> None:
        self._steps.shutdown(wait=True, cancel_futures=True)
