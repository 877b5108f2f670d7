"""The platform: device, probe, buckets and steps.

torch is imported inside the methods: the class is loaded, and its `probe` asked, where it may be missing.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...ops import BatchShape, Kernel
from ..contract import CONTRACT, Availability, Capabilities, Memory, Options, Step
from ..families.supports import SCHEMES
from ..families.torch import TorchPlatform
from .buckets import BUCKETS, MOST_GRAPHS

if TYPE_CHECKING:
    import torch

    from ..families.torch.launch import Launcher

EMULATED = "emulated"
NODES = ("/dev/accel/accel[0-9]*", "/dev/hl[0-9]*")
INSTALL = "Install Intel's Gaudi software, which brings habana_frameworks (it is not on PyPI), and inferplane into its environment"


class Gaudi(TorchPlatform):
    """`gaudi` is the chip that this process acquires, `gaudi:emulated` its constraints on the CPU: what breaks one raises."""

    name, contract = "gaudi", CONTRACT
    parallel = "gloo between processes on the CPU; HCCL: not written"
    capabilities = Capabilities(
        dtypes=("bfloat16", "float32", "float16"), block_tokens=(32, 128, 64, 16, 256, 8, 1),
        schemes=tuple(scheme for scheme in SCHEMES if not scheme.startswith("float8")), buckets=BUCKETS, static_shapes=True,
    )

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.emulated = self.device.type == "cpu"
        grade = "interpreted" if self.emulated else "device"
        self.capabilities = replace(self.capabilities, devices=(str(self.device),), grade=grade)
        if self.emulated:
            from .emulated import Graphs

            self.graphs = Graphs(BUCKETS, MOST_GRAPHS)

    @classmethod
    def probe(cls, options: Options) -> Availability:
        needed = ("torch",) if options.text == EMULATED else ("torch", "habana_frameworks")
        missing = [name for name in needed if find_spec(name) is None]
        lacking = f"Python lacks {' and '.join(missing)}" if missing else ""
        if options.text == EMULATED:
            return (Availability(False, lacking, "pip install torch") if missing else
                    Availability(True, "Gaudi's static shapes on the CPU, enforced: for proofs"))
        devices = [path for pattern in NODES for path in sorted(glob(pattern))]
        found = f"found Intel Gaudi ({devices[0]})" if devices else f"no Intel Gaudi found (no {' or '.join(NODES)})"
        if devices and not missing:
            return Availability(True, f"{found}; habana_frameworks is installed")
        remedies = [*([] if devices else [f"Use platform 'cpu' or 'auto', or 'gaudi:{EMULATED}' to try its constraints on the CPU"]),
                    *([INSTALL] if missing else [])]
        return Availability(False, f"{found}{', ' if missing else ''}{lacking}", ". ".join(remedies) + ".")

    def find_device(self, options: Options) -> torch.device:
        import torch

        if options.extra or options.text not in ("", EMULATED):
            raise ConfigError(f"platform gaudi takes {EMULATED!r} or nothing; found {options}. Which chip a process gets, "
                              "HABANA_VISIBLE_DEVICES says.")
        if options.text == EMULATED:
            return torch.device("cpu")
        from .graphs import habana

        habana("core")
        return torch.device("hpu")

    def launcher(self) -> Launcher:
        if self.device.type == "cpu":
            return super().launcher()
        from .graphs import LazyLauncher

        return LazyLauncher(self.device)

    def kernels(self) -> Sequence[Kernel]:
        from .kernels import gaudi_kernels

        return gaudi_kernels(self.device)

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """Raises `SpecError` under emulation for a shape outside the buckets; a chip would compile one graph more."""
        eager = super().compile(step, shape)
        if self.emulated:
            return self.graphs.watched(step, eager, shape)
        from .graphs import HpuGraphs

        return HpuGraphs().captured(eager)

    def memory(self) -> Memory:
        if self.emulated:
            return super().memory()
        from .graphs import habana

        free, total = habana("hpu").mem_get_info()
        return Memory(total=total, free=free)
