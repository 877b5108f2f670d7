"""The platform: device, probe and order of preference.

torch is imported inside the methods: the class is loaded, and its `probe` asked, where it may be missing.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...ops import Kernel
from ..contract import CONTRACT, Availability, Capabilities, Options
from ..families.supports import SCHEMES
from ..families.torch import TorchPlatform

if TYPE_CHECKING:
    import torch

EMULATED = "emulated"
NODES = ("/sys/bus/pci/drivers/xe/0*", "/sys/bus/pci/drivers/i915/0*")
"""What the kernel's two drivers list of Intel's GPUs."""
INSTALL = "install Intel's XPU build of torch, then pip install 'inferplane[xpu]'"


class Xpu(TorchPlatform):
    """`xpu` is the first visible device, `xpu:1` the second, `xpu:emulated` the same kernels of torch and of IPEX on the CPU."""

    name, contract = "xpu", CONTRACT
    parallel = "gloo between processes on the CPU; XCCL: never run"
    capabilities = Capabilities(dtypes=("bfloat16", "float16", "float32"), schemes=SCHEMES)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        grade = "interpreted" if self.device.type == "cpu" else "device"
        self.capabilities = replace(self.capabilities, devices=(str(self.device),), grade=grade)

    @classmethod
    def probe(cls, options: Options) -> Availability:
        missing = "" if find_spec("torch") else "Python lacks torch"
        if options.text == EMULATED:
            return (Availability(False, missing, "pip install torch") if missing else
                    Availability(True, "an Intel GPU's kernels on the CPU, as far as they run there: for proofs"))
        devices = [path for pattern in NODES for path in sorted(glob(pattern))]
        found = f"found Intel GPU ({devices[0]})" if devices else f"no Intel GPU found (no {' or '.join(NODES)})"
        wrong = missing or ("" if _built_for_xpu() else "torch is not built for Intel GPUs")
        if devices and not wrong:
            return Availability(True, f"{found}; torch is built for it")
        remedies = [*([] if devices else [f"Use platform 'cpu' or 'auto', or 'xpu:{EMULATED}' to try it without a GPU"]),
                    *([f"For a GPU: {INSTALL}"] if wrong else [])]
        return Availability(False, f"{found}{', ' if wrong else ''}{wrong}", ". ".join(remedies) + ".")

    def find_device(self, options: Options) -> torch.device:
        import torch

        if options.extra or not (options.text in ("", EMULATED) or options.text.isdecimal()):
            raise ConfigError(f"platform xpu takes the number of a device or {EMULATED!r}; found {options}")
        if options.text == EMULATED:
            return torch.device("cpu")
        index, count = int(options.text or 0) + options.rank, torch.xpu.device_count()
        if index >= count:
            raise ConfigError(f"platform xpu: asked for device {index}, and torch sees {count}. Name one below that, "
                              "or make it visible to this process (ZE_AFFINITY_MASK).")
        return torch.device("xpu", index)

    def kernels(self) -> Sequence[Kernel]:
        """IPEX's own, then ours in Triton, then torch's; what is not installed stays in the table and says so."""
        from .ipex import ipex_kernels
        from .triton import triton_kernels

        return [*ipex_kernels(self.device), *triton_kernels(self.device), *super().kernels()]


def _built_for_xpu() -> bool:
    """Whether the installed torch has an XPU library beside it: told by its files, since torch takes seconds to import."""
    spec = find_spec("torch")
    return bool(spec and spec.origin and list(Path(spec.origin).parent.glob("lib/*torch_xpu*")))
