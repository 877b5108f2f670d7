"""What a figure was measured on: processor, memory, versions, date."""
from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from .. import __version__

FAMILIES = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "sme", "bf16", "i8mm")
"""Instruction sets that matter to kernels, by how their names in /proc/cpuinfo begin."""
LIBRARIES = ("numpy", "ml_dtypes", "torch", "triton", "jax")


def describe_machine() -> dict[str, Any]:
    """Names nobody: no host, no user, no path."""
    said = _cpuinfo()
    flags = said.get("flags", said.get("Features", "")).split()
    return {
        "cpu": said.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "instruction_sets": [flag for flag in flags if flag.startswith(FAMILIES)],
        "system": platform.system(),
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
    }


def describe_versions() -> dict[str, str]:
    """Of Python, this package, and the libraries that are installed; none is imported."""
    found = {"python": platform.python_version(), "inferplane": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries; empty where the system has no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
