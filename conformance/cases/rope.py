"""rope: whole and partial heads, both pairings, bases and factors, positions past 2^20."""
from __future__ import annotations

import numpy as np

from ...ops import BatchShape, Dim, Rope, empty
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values


def _build(params: Params, random: np.random.Generator) -> Problem:
    tokens, heads, dim = params.int("tokens"), params.int("heads"), params.int("dim")
    turned = max(1, int(dim * params.float("turned")) // 2)
    base = params.float("base")
    spec = Rope(
        heads=Dim(heads), head_dim=dim, frequencies=tuple(base ** (-j / turned) for j in range(turned)), dtype=params["dtype"],
        scale=params.float("scale"), interleaved=params.flag("interleaved"),
    )
    packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
    first = params.int("first")
    batch.positions[:] = first + (random.permutation(tokens) if params.flag("shuffled") else np.arange(tokens))
    return Problem(spec, (values(random, (tokens, heads, dim), spec.dtype), Given.BATCH), packed=packed)


FAMILIES = [Family("rope.plain", 1, {
    "dtype": DTYPE, "tokens": ("1", "3", "17"), "heads": ("1", "3", "8"), "dim": ("2", "6", "32", "64", "80", "128", "256"),
    "turned": ("1", "0.5", "0.25"), "base": ("10000", "500000", "100"), "scale": ("1", "1.3"), "interleaved": YES_NO,
    "first": ("0", "1", "4090", "131060", "1048583"), "shuffled": YES_NO,
}, judged(_build))]
