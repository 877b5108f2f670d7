"""The queue of an XLA device: ops are noted, `sync` turns them into one program and starts it, and results are fetched when asked for."""
from __future__ import annotations

from typing import Any

import torch
import torch_xla

from ..contract import Pending
from ..families.torch.arrays import host, mapped
from ..families.torch.launch import Launcher, Work


class XlaLauncher(Launcher):
    """No arrays of inference mode: torch_xla keeps track of what was written where, and they are not tracked."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self, work: Work) -> Pending:
        made = self._noted(work)
        torch_xla.sync()
        return _Started(made)

    def finish(self, work: Work) -> Any:
        made = self._noted(work)
        torch_xla.sync(wait=True)
        return made

    def stage(self, array: torch.Tensor) -> torch.Tensor:
        return array.to(self.device)

    def close(self) -> None:
        torch_xla.sync(wait=True)

    @staticmethod
    def _noted(work: Work) -> Any:
        with torch.no_grad():
            return work()


class _Started:
    def __init__(self, made: Any) -> None:
        self._made = made

    def result(self) -> Any:
        return mapped(lambda array: host(array.cpu()).copy(), self._made)
