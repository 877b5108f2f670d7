"""The queue of an XLA device: ops are noted, `sync` turns them into one program and starts it, and results are fetched behind it."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any

import torch
import torch_xla

from ..contract import Pending
from ..families.torch.arrays import host, mapped
from ..families.torch.launch import Launcher, Work

ALONE = RLock()
"""torch_xla's `sync` takes every live tensor of the process, also those that another thread is noting ops on."""


class XlaLauncher(Launcher):
    """One thread does all that touches the device, and of several launchers' one at a time.

    No arrays of inference mode: torch_xla keeps track of what was written where, and they are not tracked.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xla-step")

    def start(self, work: Work) -> Pending:
        return self._thread.submit(_answered, work)

    def finish(self, work: Work) -> Any:
        return self._thread.submit(_synced, work).result()

    def stage(self, array: torch.Tensor) -> torch.Tensor:
        return array

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _synced(work: Work) -> Any:
    with ALONE:
        with torch.no_grad():
            made = work()
        torch_xla.sync()
    return made


def _answered(work: Work) -> Any:
    with ALONE:
        return mapped(_fetched, _synced(work))


def _fetched(array: torch.Tensor) -> Any:
    return host(array.cpu()).copy()
