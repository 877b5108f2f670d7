"""Launch configurations (tiles, warps, stages) per kernel and chip: data in `launches.toml`, never searched for while serving."""
from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ....errors import PlatformLoadError
from .target import Target

TABLE = Path(__file__).with_name("launches.toml")


@dataclass(frozen=True)
class Launch:
    """meta: tile sizes and switches, by the names of the kernel's constants. options: num_warps, num_stages, vendor's extras."""

    meta: Mapping[str, Any]
    options: Mapping[str, int]

    def __hash__(self) -> int:
        return hash((*self.meta.items(), *self.options.items()))


@cache
def table() -> Mapping[str, list[Mapping[str, Any]]]:
    """Kernel -> its entries, as the file has them."""
    entries: Mapping[str, list[Mapping[str, Any]]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return entries


def launch_of(target: Target, kernel: str, **key: int | str) -> Launch:
    """The first fitting entry for `target`: those of its arch before those of its vendor before those of `any` chip.

    An entry fits where each of its `key`s does: text by being equal, a number by being at least the asked one.
    Under the interpreter, entries of `interpreted` come first of all. Raises `PlatformLoadError` where nothing fits.
    """
    return _found(target.arch, target.vendor, target.interpreted, kernel, tuple(sorted(key.items())))


@lru_cache(maxsize=4096)
def _found(arch: str, vendor: str, interpreted: bool, kernel: str, key: tuple[tuple[str, int | str], ...]) -> Launch:
    asked = dict(key)
    for name in (*(["interpreted"] if interpreted else []), arch, vendor, "any"):
        for entry in table().get(kernel, []):
            if entry["target"] == name and all(_fits(limit, asked.get(what)) for what, limit in entry.get("key", {}).items()):
                return Launch(entry.get("meta", {}), entry.get("options", {}))
    wanted = f"kernel {kernel!r} on {arch} with {asked or 'no key'}"
    raise PlatformLoadError(f"no launch configuration for {wanted}; add an entry to {TABLE.name}")


def _fits(limit: int | str, asked: int | str | None) -> bool:
    if isinstance(limit, int) and isinstance(asked, int):
        return asked <= limit
    return limit == asked
