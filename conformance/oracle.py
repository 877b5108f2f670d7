"""What is right: the float64 reference of ops/, a naive evaluation beside it, kept on disk by the case's address."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..ops import Abstract, Sampled
from ..platforms import registry
from ..platforms.contract import Platform
from .address import Address
from .problem import Array, Problem

ROOT = Path(__file__).resolve().parent.parent
CODE = (
    "ops/*.py", "core/*.py", "model_zoo/*.py", "platforms/families/numpy/*.py", "conformance/cases/*.py",
    "conformance/models.py", "conformance/naive.py", "conformance/problem.py", "conformance/oracle.py",
)
"""What an expectation depends on, besides its address."""


@dataclass(frozen=True)
class Expected:
    """For each result: its value (float64, or integers), its dtype, and what its class compares with."""

    results: list[Array]
    dtypes: list[str]
    naive: list[Array] | None = None
    magnitude: list[Array] | None = None
    last_token: Array | None = None
    """What the state's last tokens are afterwards."""


class Oracle:
    """Expectations; `folder` keeps them between runs."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def expected(self, problem: Problem, address: Address) -> Expected:
        return self.kept(address, lambda: self.compute(problem))

    def kept(self, address: Address, compute: Callable[[], Expected]) -> Expected:
        """What was kept under this address, or is now computed."""
        if self.folder is None:
            return compute()
        name = hashlib.sha256(f"{address}\n{_code()}".encode()).hexdigest()
        path = self.folder / name[:2] / f"{name}.npz"
        return _read(path) if path.is_file() else _kept(path, compute())

    @cached_property
    def platform(self) -> Platform:
        """The reference platform, for what is more than one op."""
        return registry.named("reference")

    def compute(self, problem: Problem) -> Expected:
        arguments, _, state = problem.host_arguments()
        shapes = problem.spec.infer(*map(_abstract, arguments))
        with np.errstate(all="ignore"):
            results = _parts(problem.view(problem.spec.reference(*arguments)))
            naive = None if problem.naive is None else _parts(problem.view(problem.naive(*problem.host_arguments()[0])))
            magnitude = problem.spec.magnitude(*arguments)
            magnitude = None if magnitude is None else _parts(problem.view(magnitude))
        dtypes = [one.dtype.name for one in results] if isinstance(shapes, Sampled) or problem.spec.op == "derive" else _dtypes(shapes)
        return Expected(results, dtypes, naive, magnitude, None if problem.last_token is None else state.last_token)


def _abstract(value: Any) -> Any:
    return Abstract(value.shape, value.dtype.name) if isinstance(value, np.ndarray) else value


def _parts(result: Any) -> list[Array]:
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,)) if part is not None]


def _dtypes(shapes: Any) -> list[str]:
    made = [shapes] if isinstance(shapes, Abstract) else shapes or []
    return [one.dtype for one in made]


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _kept(path: Path, expected: Expected) -> Expected:
    """Written whole or not at all: another process may be writing it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"dtypes": np.array(expected.dtypes, dtype=str)}
    for part in ("results", "naive", "magnitude"):
        for place, array in enumerate(getattr(expected, part) or ()):
            arrays[f"{part}{place}"] = array.astype(np.float64) if part == "naive" else array
    if expected.last_token is not None:
        arrays["last_token"] = expected.last_token
    scratch = path.with_suffix(f".{id(arrays):x}.tmp.npz")
    np.savez(scratch, **arrays)
    scratch.replace(path)
    return expected


def _read(path: Path) -> Expected:
    with np.load(path) as kept:
        def part(name: str) -> list[Array]:
            return [kept[f"{name}{place}"] for place in range(len(kept.files)) if f"{name}{place}" in kept.files]

        return Expected(
            part("results"), [str(dtype) for dtype in kept["dtypes"]], part("naive") or None, part("magnitude") or None,
            kept["last_token"] if "last_token" in kept.files else None,
        )
