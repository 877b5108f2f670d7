"""One safetensors file: a validated header and a memory map of what follows it."""
from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError
from . import pages

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER_BYTES = 100_000_000
"""As in the safetensors library: a longer one is an attack or damage."""
AGAIN = "fetch the file again"


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: byte offsets into the data that follows the header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    stop: int


@dataclass(frozen=True)
class SafetensorsFile:
    """Format: 8 bytes of header length (little endian), a JSON header, then the tensors without gap or overlap."""

    path: Path
    size: int
    entries: Mapping[str, Entry]
    data: np.ndarray[Any, np.dtype[np.uint8]]
    """The memory map behind the header."""
    mapping: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Raises `CheckpointError` for a truncated or damaged file."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise _error(path, f"has {size} bytes and no header; {8 - size} bytes are missing from its first 8", AGAIN)
            if length > MAX_HEADER_BYTES:
                raise _error(path, f"claims a header of {length} bytes; it is no safetensors file", AGAIN)
            if size < 8 + length:
                raise _error(path, f"ends within its header: {8 + length - size} bytes are missing", AGAIN)
            header = file.read(length)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        entries = _entries(path, header)
        expected = 8 + length + max((entry.stop for entry in entries.values()), default=0)
        if size < expected:
            raise _error(path, f"is truncated: {expected - size} of {expected} bytes are missing", AGAIN)
        if size > expected:
            raise _error(path, f"has {size - expected} bytes that belong to no tensor", AGAIN)
        return cls(path, size, entries, np.frombuffer(mapping, np.uint8)[8 + length :], mapping)

    def bytes_of(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[bytes] a read-only view."""
        entry = self.entries[name]
        return self.data[entry.start : entry.stop]

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """A read-only view; a copy only where the file left the tensor unaligned."""
        entry = self.entries[name]
        return np.require(self.bytes_of(name).view(entry.dtype).reshape(entry.shape).view(np.ndarray), requirements="A")

    def release(self, name: str) -> None:
        """Drop the tensor's pages from memory. A view of it stays sound: what is needed again is read again."""
        entry = self.entries[name]
        header = len(self.mapping) - len(self.data)
        pages.release(self.mapping, header + entry.start, header + entry.stop)


def _entries(path: Path, header: bytes) -> dict[str, Entry]:
    try:
        parsed = json.loads(header)
    except ValueError as error:
        raise _error(path, f"has a header that is not JSON ({error})", AGAIN) from None
    if not isinstance(parsed, dict):
        raise _error(path, "has a header that is no JSON object", AGAIN)
    parsed.pop("__metadata__", None)
    entries = {name: _entry(path, name, value) for name, value in parsed.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise _error(path, f"is damaged: {name} starts at byte {entry.start} and {what}, which ends at {position}", AGAIN)
        position = entry.stop
    return entries


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        kind, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        integers = (*shape, start, stop)
    except (TypeError, KeyError, ValueError):
        raise _error(path, f"is damaged: the header's entry for {name} has no dtype, shape and data_offsets", AGAIN) from None
    if any(type(n) is not int or n < 0 for n in integers):
        raise _error(path, f"is damaged: {name} has shape {list(shape)} and offsets {start}..{stop}", AGAIN)
    if kind not in DTYPES:
        raise _error(path, f"stores {name} as {kind!r}; known: {', '.join(DTYPES)}", "use a checkpoint in bfloat16 or float32")
    needed = prod(shape) * DTYPES[kind].itemsize
    if stop - start != needed:
        raise _error(path, f"is damaged: {name} {list(shape)} in {kind} needs {needed} bytes, and has {stop - start}", AGAIN)
    return Entry(shape, DTYPES[kind], start, stop)


def _error(path: Path, found: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} {found}. Remedy: {remedy}.")
