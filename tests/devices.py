"""A torch platform on the CPU, registered like anybody's: what several devices are tried on."""
from __future__ import annotations

import os
from typing import Any

from inferplane.errors import ConfigError
from inferplane.platforms.contract import CONTRACT, Availability, Capabilities, Options
from inferplane.platforms.families.supports import SCHEMES
from inferplane.platforms.families.torch import TorchPlatform


class TorchCpu(TorchPlatform):
    """Options for what shall fail on one rank: `torch-cpu:absent=1`, no such device; `dies=1`, at once; `breaks=1`, in its first step."""

    name, contract, preference = "torch-cpu", CONTRACT, -1
    capabilities = Capabilities(dtypes=("float32", "bfloat16"), schemes=SCHEMES)

    @classmethod
    def probe(cls, options: Options) -> Availability:
        return Availability(True, "torch on any machine")

    def submit(self, *step: Any) -> Any:
        if self.broken:
            raise ValueError("this device is broken")
        return super().submit(*step)

    def find_device(self, options: Options) -> Any:
        import torch

        self.broken = options.extra.get("breaks") == str(options.rank)
        match options.extra.get("absent"), options.extra.get("dies"):
            case str(absent), _ if options.rank == int(absent):
                raise ConfigError(f"there is no device {options.rank} here. Use fewer.")
            case _, str(dies) if options.rank == int(dies):
                os._exit(3)
        return torch.device("cpu")
