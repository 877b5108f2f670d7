"""How work is started in order and without waiting: a thread where torch computes on the host, elsewhere the device's queue."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ...contract import Pending
from .arrays import host, mapped

Work = Callable[[], Any]


class Launcher(ABC):
    """One queue: what is started later sees everything that was started earlier."""

    @abstractmethod
    def start(self, work: Work) -> Pending:
        """`result()` gives the work's tensors as host arrays, in the same structure."""

    @abstractmethod
    def finish(self, work: Work) -> Any:
        """The work's own result, after everything started before."""

    @abstractmethod
    def stage(self, array: torch.Tensor) -> torch.Tensor:
        """A fresh CPU tensor on its way to the device."""

    def close(self) -> None:
        """Waits for what was started."""


class ThreadLauncher(Launcher):
    """For torch on the CPU, whose ops block: they run on one thread, and the host plans the next step meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-step")

    def start(self, work: Work) -> Pending:
        return self._thread.submit(lambda: mapped(_copied, _ungraded(work)))

    def finish(self, work: Work) -> Any:
        return self._thread.submit(_ungraded, work).result()

    def stage(self, array: torch.Tensor) -> torch.Tensor:
        return array

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _copied(array: torch.Tensor) -> Any:
    """A later step may write where this array lies."""
    return host(array).copy()


class QueueLauncher(Launcher):
    """For accelerators, whose ops return at once. Answers travel to pinned memory behind the step that made them.

    Pinned memory comes from torch's caching allocator, which keeps a buffer from being used again while a copy is in flight.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, work: Work) -> Pending:
        made = mapped(_fetched, _ungraded(work))
        done = torch.Event(device=self.device)
        done.record()
        return _Fetched(made, done)

    def finish(self, work: Work) -> Any:
        return _ungraded(work)

    def stage(self, array: torch.Tensor) -> torch.Tensor:
        return array.pin_memory().to(self.device, non_blocking=True)

    def close(self) -> None:
        torch.accelerator.synchronize(self.device)


class _Fetched:
    def __init__(self, tree: Any, done: torch.Event) -> None:
        self._tree, self._done = tree, done

    def result(self) -> Any:
        self._done.synchronize()
        return mapped(host, self._tree)


def _fetched(array: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
    return pinned.copy_(array, non_blocking=True)


def _ungraded(work: Work) -> Any:
    with torch.inference_mode():
        return work()
