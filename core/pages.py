"""Pages of a memory-mapped file: they leave memory once what they hold was packed."""
from __future__ import annotations

import mmap


def release(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Drop bytes start .. stop - 1. A view of them stays sound: what is needed again is read again."""
    first = start - start % mmap.PAGESIZE
    if stop > start and hasattr(mmap, "MADV_DONTNEED"):  # not everywhere
        mapping.madvise(mmap.MADV_DONTNEED, first, stop - first)
