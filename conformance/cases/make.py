"""How the families make their inputs: random values of one dtype, with a chosen character."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops import DTYPES
from ..address import Address
from ..case import Params, Run
from ..judge import judge
from ..problem import Array, Problem

DTYPE = ("float32", "bfloat16", "float16")
YES_NO = ("no", "yes")

Build = Callable[[Params, np.random.Generator], Problem]


@dataclass(frozen=True)
class Judged:
    """The run of a family whose cases are problems of one op."""

    build: Build

    def __call__(self, params: Params, address: Address, rig: Any) -> tuple[str, ...]:
        return judge(self.problem(params, address), address, rig)

    def problem(self, params: Params, address: Address) -> Problem:
        return self.build(params, address.random())


def judged(build: Build) -> Run:
    return Judged(build)


def values(random: np.random.Generator, shape: tuple[int, ...], dtype: str, character: str = "normal") -> Array:
    """normal: N(0, 1). small, large: the same far from 1. shifted: around 1000. same: one value. extreme: with zeros of both
    signs, NaN, subnormals and nearly the largest finite number among the rest. special: extreme, and infinities."""
    array = random.normal(size=shape)
    if character == "small":
        array = array * 2.0**-12
    elif character == "large":
        array = array * 2.0**6
    elif character == "shifted":
        array = array + 1000
    elif character == "same":
        array = np.full(shape, float(array.flat[0]) if array.size else 0.0)
    elif character in ("extreme", "special") and array.size:
        limits = np.finfo(np.float16) if dtype == "float16" else np.finfo(np.float32)
        extremes = [0.0, -0.0, np.nan, float(limits.max) * 0.9, float(limits.smallest_subnormal) * 8, -1.0]
        extremes = extremes if character == "extreme" else [np.inf, -np.inf, *extremes]
        places = random.choice(array.size, size=min(array.size, len(extremes)), replace=False)
        array.reshape(-1)[places] = extremes[: len(places)]
    with np.errstate(over="ignore"):
        return array.astype(DTYPES[dtype])
