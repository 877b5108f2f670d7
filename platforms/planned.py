"""The platforms whose names are known and whose kernels are not written yet: what their probes find, and what to do."""
from __future__ import annotations

from glob import glob
from importlib.util import find_spec
from typing import ClassVar

from .contract import CONTRACT, Availability, Options, Platform


class Planned(Platform):
    """Tells what this machine has and lacks for an accelerator. Never usable, so never constructed."""

    contract = CONTRACT
    chip: ClassVar[str]
    nodes: ClassVar[tuple[str, ...]]
    """Paths, as glob patterns, of which a machine with the chip has at least one."""
    modules: ClassVar[dict[str, str]]
    """Python modules that its kernels will need, and what installs them."""

    @classmethod
    def probe(cls, options: Options) -> Availability:
        devices = [path for pattern in cls.nodes for path in sorted(glob(pattern))]
        missing = [name for name in cls.modules if find_spec(name) is None]
        found = f"found {cls.chip} ({devices[0]})" if devices else f"no {cls.chip} found (no {' or '.join(cls.nodes)})"
        lacking = f", Python lacks {' and '.join(missing)}" if missing else ""
        install = ", and ".join(dict.fromkeys(cls.modules[name] for name in missing))
        later = f" A release that has them will need: {install}." if install else ""
        return Availability(
            usable=False,
            reason=f"{found}{lacking}; kernels for this platform are not part of this release yet",
            remedy=f"Use platform 'cpu' or 'auto' meanwhile.{later}",
        )


class Tpu(Planned):
    name = "tpu"
    chip = "Google TPU"
    nodes = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
    modules: ClassVar = dict.fromkeys(("jax", "libtpu"), "pip install 'inferplane[tpu]'")
