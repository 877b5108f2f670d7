"""Arrays across devices by torch.distributed: gloo where torch computes on the host, NCCL (RCCL) where it computes on accelerators.

Every sum is gathered and added up here, in the order of ranks: the same bits on each device, whatever else is in the batch.
With two devices that moves as much as a ring would.
"""
from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ....errors import PlatformUnavailable
from ...contract import World
from .arrays import TORCH

LOOPBACK = "127.0.0.1"


class TorchCollectives:
    """`contract.Collectives` over a process group of its own: torch's default group stays free for others."""

    def __init__(self, device: torch.device, world: World) -> None:
        self.device, self.size = device, world.size
        self._threads = torch.get_num_threads()
        if device.type == "cpu":
            torch.set_num_threads(max(1, self._threads // world.size))
        store = dist.FileStore(str(world.meeting / "torch"), world.size)
        store.set_timeout(timedelta(seconds=world.timeout_seconds))
        self.group = _gloo(store, world) if device.type == "cpu" else _nccl(store, world)

    def all_reduce(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        first, *others = self._parts(array)
        total = first if first.dtype == torch.float64 else first.float()
        for part in others:
            total = total + part
        return total.to(TORCH[dtype])

    def all_gather(self, array: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._parts(array), dim=-1)

    def _parts(self, array: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The array of each device, in the order of ranks."""
        flat = array.contiguous().view(-1)
        together = flat.new_empty(self.size * flat.numel())
        self.group._allgather_base(together, flat).wait()
        return together.view(self.size, *array.shape).unbind(0)

    def abort(self) -> None:
        self.group.abort()

    def close(self) -> None:
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)
        self.group.shutdown()


def _gloo(store: dist.Store, world: World) -> Any:
    """Between processes of one machine: nothing listens on its network."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    options._timeout = timedelta(seconds=world.timeout_seconds)
    return dist.ProcessGroupGloo(store, world.rank, world.size, options)


def _nccl(store: dist.Store, world: World) -> Any:
    """Never run on devices."""
    if not dist.is_nccl_available():
        raise PlatformUnavailable("this torch has neither NCCL nor RCCL, and tensor_parallel needs one. Install a torch build for the "
                                  "device, or leave tensor_parallel out.")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=world.timeout_seconds)
    return dist.ProcessGroupNCCL(store, world.rank, world.size, options)
