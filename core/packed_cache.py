"""Prepared weights on disk: a second start maps what the kernels packed, instead of packing it again.

    magic | array, padded to a page | array | ... | index, JSON | footer: length of the index, its SHA-256

The index holds the load that the file was written for, and each weight's handle as a tree whose leaves say where an array
lies and what a sample of its bytes hashes to. One file serves a model, a platform and its kernels; a file that belongs to
another build of them, or is damaged, is written anew.
"""
from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

MAGIC = b"INFERPLANE PACKED 1\n"
ALIGNMENT = 4096
SAMPLES, SAMPLE_BYTES = 64, 256
"""What is hashed of each array."""
FOOTER_BYTES = 8 + hashlib.sha256().digest_size
SCALARS = (bool, int, float, str, type(None))
UNWRITTEN = "packed weights are not kept: %s cannot be written (%s); free some space there, or set INFERPLANE_CACHE"

log = logging.getLogger(__name__)


class Unstorable(Exception):
    """A handle that is no tree of host arrays."""


class PackedCache:
    """One load's file. Either every weight comes from it (`ready`), or it is written: `put` each, then `finish`.

    load: what the handles depend on, beyond the name of the file. Nothing here ever fails a start: a file that cannot be
    used, and a disk that is full, are told as warnings.
    """

    def __init__(self, folder: Path, name: str, load: Sequence[str]) -> None:
        self.path, self.load = folder / f"{name}.packed", [sys.byteorder, *load]
        self._handles = self._open()
        self._writer = None if self.ready else _Writer.start(self.path)

    @property
    def ready(self) -> bool:
        return self._handles is not None

    def get(self, weight: str) -> Any:
        """The handle, its arrays mapped and read-only; None where the file has none."""
        return None if self._handles is None else self._handles.get(weight)

    def put(self, weight: str, handle: Any) -> None:
        """Write a handle; one that is no tree of host arrays is left out."""
        if self._writer is not None:
            self._attempt(lambda writer: writer.add(weight, handle))

    def finish(self) -> None:
        """Everything was put: the file takes its name."""
        self._attempt(lambda writer: writer.close(self.load))
        self._writer = None

    def abandon(self) -> None:
        """The load failed: nothing is left behind."""
        if self._writer is not None:
            self._writer.remove()
            self._writer = None

    def _attempt(self, action: Any) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:
            self._writer.remove()
            self._writer = None
            log.warning(UNWRITTEN, self.path, error)

    def _open(self) -> dict[str, Any] | None:
        try:
            with self.path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _read(np.frombuffer(mapping, np.uint8), self.load)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("packed weights in %s cannot be used (%s); they are packed again", self.path, error)
            return None


def _read(data: np.ndarray[Any, np.dtype[np.uint8]], load: Sequence[str]) -> dict[str, Any] | None:
    """Handles by weight; None: made for another load. Raises `ValueError` and its like for a damaged file."""
    footer = data[-FOOTER_BYTES:].tobytes()
    length = int.from_bytes(footer[:8], "little")
    if len(footer) < FOOTER_BYTES or data[: len(MAGIC)].tobytes() != MAGIC or length + FOOTER_BYTES > len(data):
        raise ValueError("it is no whole file of packed weights")
    text = data[len(data) - FOOTER_BYTES - length : len(data) - FOOTER_BYTES].tobytes()
    if hashlib.sha256(text).digest() != footer[8:]:
        raise ValueError("its index is damaged")
    index = json.loads(text)
    if index["load"] != list(load):
        log.info("packed weights belong to another build or another choice of kernels; they are packed again")
        return None
    return {weight: _decode(tree, data) for weight, tree in index["weights"].items()}


class _Writer:
    """A file under a passing name, until it is whole."""

    def __init__(self, path: Path, part: Path, file: IO[bytes]) -> None:
        self.path, self.part, self.file = path, part, file
        self.weights: dict[str, Any] = {}
        file.write(MAGIC)

    @classmethod
    def start(cls, path: Path) -> _Writer | None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            return cls(path, part, part.open("wb"))
        except OSError as error:
            log.warning(UNWRITTEN, path, error)
            return None

    def add(self, weight: str, handle: Any) -> None:
        arrays: list[np.ndarray[Any, Any]] = []
        try:
            tree = _encode(handle, arrays)
        except Unstorable as reason:
            log.info("weight %s is not kept: %s", weight, reason)
            return
        places = [self._write(array) for array in arrays]
        self.weights[weight] = _placed(tree, places)

    def _write(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        start, data = self.file.tell(), np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.file.write(data.data)
        return {"dtype": array.dtype.name, "shape": list(array.shape), "start": start, "sample": _sample(data)}

    def close(self, load: Sequence[str]) -> None:
        text = json.dumps({"load": list(load), "weights": self.weights}).encode()
        self.file.write(text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.part, self.path)

    def remove(self) -> None:
        with suppress(OSError):  # what was buffered does not fit either
            self.file.close()
        self.part.unlink(missing_ok=True)


def _encode(handle: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    """JSON in which each array is a number, in the order of `arrays`. Raises `Unstorable`."""
    if isinstance(handle, np.ndarray):
        arrays.append(handle)
        return {"array": len(arrays) - 1}
    if isinstance(handle, SCALARS):
        return {"value": handle}
    if isinstance(handle, (tuple, list)):
        made = type(handle)
        if made not in (tuple, list) and not hasattr(made, "_fields"):
            raise Unstorable(f"{made.__name__} is no tuple that can be made again")
        kind = made.__name__ if made in (tuple, list) else f"{made.__module__}:{made.__qualname__}"
        return {"kind": kind, "items": [_encode(item, arrays) for item in handle]}
    raise Unstorable(f"its handle holds a {type(handle).__name__}, which is no host array")


def _placed(tree: dict[str, Any], places: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tree with each array's number replaced by its place."""
    if "items" in tree:
        return tree | {"items": [_placed(item, places) for item in tree["items"]]}
    return {"array": places[tree["array"]]} if "array" in tree else tree


def _decode(tree: dict[str, Any], data: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    if "items" in tree:
        items = [_decode(item, data) for item in tree["items"]]
        return items if tree["kind"] == "list" else tuple(items) if tree["kind"] == "tuple" else _named(tree["kind"])(*items)
    if "value" in tree:
        return tree["value"]
    place = tree["array"]
    dtype = np.dtype(getattr(ml_dtypes, place["dtype"], place["dtype"]))
    count = int(np.prod(place["shape"], dtype=np.int64)) * dtype.itemsize
    found = data[place["start"] : place["start"] + count]
    if len(found) != count or _sample(found) != place["sample"]:
        raise ValueError(f"bytes {place['start']} to {place['start'] + count} are damaged")
    return found.view(dtype).reshape(place["shape"])


def _named(kind: str) -> Any:
    """A NamedTuple of a module that is loaded already: a file names no code to import."""
    module, _, name = kind.partition(":")
    found = getattr(sys.modules[module], name)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise ValueError(f"{kind} is no NamedTuple")
    return found


def _sample(data: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    digest = hashlib.sha256(str(len(data)).encode())
    for start in np.linspace(0, max(0, len(data) - SAMPLE_BYTES), SAMPLES, dtype=np.int64):
        digest.update(data[start : start + SAMPLE_BYTES].tobytes())
    return digest.hexdigest()[:32]
