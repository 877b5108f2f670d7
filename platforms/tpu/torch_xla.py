"""`tpu:torch_xla`: the torch family on an XLA device, for those who have torch_xla and not JAX. Any device that PJRT_DEVICE names will do.

torch and torch_xla are imported inside the methods: the class is loaded, and its `probe` asked, where they may be missing.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from ...ops import BatchShape, StateGroup
from ..contract import CONTRACT, Availability, Buckets, Capabilities, Collectives, Memory, Options, Platform, Step, World
from ..families.supports import SCHEMES
from ..families.torch import TorchPlatform

if TYPE_CHECKING:
    import torch

    from ..families.torch.launch import Launcher
    from ..families.torch.state import TorchState

TORCH_XLA = "torch_xla"
BUCKETS = Buckets(
    tokens=(8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    rows=(8, 16, 32, 64, 128, 256),
    samples=(8, 16, 32, 64, 128, 256),
    blocks=(8, 32, 128, 512, 2048),
)


class TorchXla(TorchPlatform):
    """Steps are noted lazily, and each is one XLA program: compiled at the first step of its shape."""

    name, contract = "tpu", CONTRACT
    parallel = ""
    capabilities = Capabilities(
        dtypes=("bfloat16", "float32"), block_tokens=(32, 16, 64, 128, 256, 8, 1), schemes=SCHEMES, buckets=BUCKETS,
    )

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        import torch_xla.runtime

        self.host = torch_xla.runtime.device_type() == "CPU"
        self.capabilities = replace(self.capabilities, devices=(str(self.device),), grade="interpreted" if self.host else "device")

    @classmethod
    def probe(cls, options: Options) -> Availability:
        missing = [name for name in ("torch", "torch_xla") if find_spec(name) is None]
        if missing:
            return Availability(False, f"Python lacks {' and '.join(missing)}", "pip install torch==2.9.0 torch_xla==2.9.0")
        return Availability(True, "torch_xla is installed; it computes on what PJRT_DEVICE says (TPU, CPU)")

    def find_device(self, options: Options) -> torch.device:
        if options.extra or options.text != TORCH_XLA:
            raise ConfigError(f"platform tpu:{TORCH_XLA} takes no further options; found {options}")
        import torch_xla

        return torch_xla.device()

    def launcher(self) -> Launcher:
        from .xla_launch import XlaLauncher

        return XlaLauncher()

    def put(self, host: np.ndarray[Any, Any]) -> torch.Tensor:
        made: torch.Tensor = self.steps.finish(lambda: super(TorchXla, self).put(host))
        return made

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> TorchState:
        made: TorchState = self.steps.finish(lambda: super(TorchXla, self).allocate(groups, blocks, slots))
        return made

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """The two buffers go to the device on the thread of the steps."""
        eager = super().compile(step, shape)
        return lambda weights, state, *buffers: eager(weights, state, *(buffer.to(self.device) for buffer in buffers))

    def memory(self) -> Memory:
        if self.host:
            import psutil

            found = psutil.virtual_memory()
            return Memory(total=found.total, free=found.available)
        import torch_xla.core.xla_model as xla_model

        told = xla_model.get_memory_info(self.device)
        return Memory(total=told["bytes_limit"], free=told["bytes_limit"] - told["bytes_used"])

    def collectives(self, world: World) -> Collectives:  # type: ignore[override]
        return Platform.collectives(self, world)
