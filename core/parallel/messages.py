"""What rank 0 and its workers tell each other. A step is a `Packed`; the last message is None."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...errors import EngineError, InferplaneError
from ...platforms.contract import HostArrays, World
from ...platforms.registry import Found, FoundPack
from ..checkpoint import Checkpoint
from ..loader import LoadOptions, Source


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to load its part; discovery's answers are in it."""

    found: Found
    packs: Sequence[FoundPack]
    place: Path | Source
    """Where the checkpoint lies, or weights from elsewhere."""
    options: LoadOptions
    world: World

    @property
    def source(self) -> Source:
        return Checkpoint.open(self.place) if isinstance(self.place, Path) else self.place


@dataclass(frozen=True)
class Meet:
    """To a worker: every process is up."""


@dataclass(frozen=True)
class Allocate:
    """To a worker: the sizes of its `Runner`."""

    blocks: Sequence[int]
    slots: int


@dataclass(frozen=True)
class Read:
    """To a worker: send its part of some blocks."""

    group: int
    blocks: Sequence[int]


@dataclass(frozen=True)
class Write:
    """To a worker: take its part of some blocks."""

    group: int
    blocks: Sequence[int]
    arrays: HostArrays


@dataclass(frozen=True)
class Opened:
    """From a worker: its platform is open."""


@dataclass(frozen=True)
class Prepared:
    """From a worker: its weights are in place."""

    free_bytes: int


@dataclass(frozen=True)
class Allocated:
    """From a worker: it waits for steps."""


@dataclass(frozen=True)
class Blocks:
    """From a worker: what it was told to read."""

    arrays: HostArrays


@dataclass(frozen=True)
class Failure:
    """From a worker, and its last word."""

    kind: type[InferplaneError]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        if isinstance(error, InferplaneError):
            return cls(type(error), str(error))
        return cls(EngineError, f"{type(error).__name__}: {error}")
