"""What the machine can do at most, measured in the same run as the figures that are held against it."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import psutil

from ..platforms.contract import Platform

BUFFER_BYTES = 384 << 20
"""Larger than the caches."""
REPEATS = 3


@dataclass(frozen=True)
class Limits:
    """Rates by a device's own loops. None and absent: nobody measured it."""

    source: str
    read_bytes_per_second: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    """dtype -> multiplications and additions in a second."""


def measure_limits(platform: Platform) -> Limits:
    """By the platform where it can. Otherwise, for host memory, by NumPy: a lower bound, and no peaks. Takes under a second."""
    if found := platform.measure_limits():
        peaks = {name.rpartition("_")[0]: rate for name, rate in found.items() if name.endswith(("_flops", "_ops"))}
        return Limits(platform.name, found["read_bytes_per_second"], peaks)
    if platform.capabilities.devices == ("cpu",):
        return Limits("numpy", _read_rate())
    return Limits("none")


def typical(measured: Sequence[Limits]) -> Limits:
    """The median of each rate: what a run saw, between its repeats."""
    reads = [one.read_bytes_per_second for one in measured if one.read_bytes_per_second is not None]
    flops = {dtype: median(one.flops[dtype] for one in measured) for dtype in measured[0].flops}
    return Limits(measured[0].source, median(reads) if reads else None, flops)


def _read_rate() -> float:
    """Bytes per second that NumPy reads with a thread for each core: the median of some passes."""
    threads = psutil.cpu_count() or 1
    parts = np.array_split(np.ones(BUFFER_BYTES // 8, np.int64), threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            rates.append(BUFFER_BYTES / (time.perf_counter() - start))
    return median(rates)
