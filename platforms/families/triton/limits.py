"""What a chip can do at most, measured on it: bytes that it moves, multiplications and additions of its matrix unit."""
from __future__ import annotations

import time
from collections.abc import Callable

import torch

COPY_BYTES = 512 << 20
"""Of the source and of the target each: larger than any cache."""
SIDE = 4096
"""Of the square matrices."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BURSTS, CALLS = 5, 8
"""The best of some bursts; a burst is as many calls, one behind the other."""


def measure(device: torch.device, copy_bytes: int = COPY_BYTES, side: int = SIDE) -> dict[str, float]:
    """read_bytes_per_second, where a copy counts what it reads and what it writes, and <dtype>_flops."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"read_bytes_per_second": 2 * copy_bytes / _seconds(device, lambda: target.copy_(source))}
    for dtype in DTYPES:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        out = torch.empty_like(a)
        seconds = _seconds(device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        found[f"{str(dtype).removeprefix('torch.')}_flops"] = 2 * side**3 / seconds
    return found


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Of one call."""
    call()
    best = float("inf")
    for _ in range(BURSTS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        _wait(device)
        best = min(best, (time.perf_counter() - start) / CALLS)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
