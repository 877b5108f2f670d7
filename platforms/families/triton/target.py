"""The chips that kernels are compiled for: what each allows, as data, and which of them a torch device is."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ....errors import PlatformUnavailable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Target:
    """One chip as a kernel author sees it. Sizes are those of one program (a block of threads)."""

    vendor: Literal["nvidia", "amd", "intel"]
    arch: str
    """`sm_90`, `gfx942`."""
    warp_size: int
    shared_bytes: int
    """Shared memory that one program may take."""
    float8: tuple[str, ...]
    """torch's names of the 8-bit floats that loads, stores, conversions and products may use there."""
    processors: int
    """Streaming multiprocessors or compute units: how many programs run side by side at least."""
    registers: int
    """Of one thread, in 32 bits."""
    interpreted: bool = False

    def __str__(self) -> str:
        return f"{self.arch}, interpreted" if self.interpreted else self.arch


TARGETS: dict[str, Target] = {
    one.arch: one
    for one in (
        Target("nvidia", "sm_80", 32, 166_912, ("float8_e5m2",), 108, 255),
        Target("nvidia", "sm_90", 32, 232_448, ("float8_e4m3fn", "float8_e5m2"), 132, 255),
        Target("nvidia", "sm_100", 32, 232_448, ("float8_e4m3fn", "float8_e5m2"), 148, 255),
        Target("amd", "gfx942", 64, 65_536, ("float8_e4m3fnuz", "float8_e5m2fnuz"), 304, 512),
        Target("amd", "gfx950", 64, 163_840, ("float8_e4m3fn", "float8_e5m2"), 256, 512),
    )
}
"""A100, H100 and H200, B200, MI300X, MI355X."""

INTERPRETED = {"nvidia": "sm_90", "amd": "gfx942"}
"""The chip whose choices (tiles, formats) an interpreted platform of a vendor makes."""


def interpreted(vendor: str) -> Target:
    return replace(TARGETS[INTERPRETED[vendor]], interpreted=True)


def of_device(vendor: str, device: torch.device) -> Target:
    """The target of a torch device. A chip that is not in the table is taken for the nearest older one of its vendor.

    Raises `PlatformUnavailable` for a chip older than all of them.
    """
    import torch

    found: Any = torch.cuda.get_device_properties(device)
    arch = found.gcnArchName.partition(":")[0] if vendor == "amd" else f"sm_{found.major}{found.minor}"
    older = [one for one in TARGETS.values() if one.vendor == vendor and _generation(one.arch) <= _generation(arch)]
    if not older:
        known = ", ".join(name for name, one in TARGETS.items() if one.vendor == vendor)
        raise PlatformUnavailable(f"{found.name} ({arch}) is older than what the kernels are written for: {known}. Use platform 'cpu'.")
    nearest = max(older, key=lambda one: _generation(one.arch))
    return replace(nearest, processors=found.multi_processor_count)


def _generation(arch: str) -> int:
    """Ascending with the age of a vendor's chips: sm_100 -> 100, gfx942 -> 0x942."""
    return int(arch.removeprefix("gfx"), 16) if arch.startswith("gfx") else int(arch.removeprefix("sm_"))
