"""rope: whole and partial heads, both pairings, bases and factors, positions past 2^20; and with the KV write behind it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...ops import BatchShape, Dim, QkvRopeWrite, Rope, WriteKV, empty
from ..case import Family, Params
from ..problem import Array, Given, Problem
from .make import DTYPE, YES_NO, judged, values
from .ragged import ragged

BATCHES = {"decode": [(1, 15)], "prefill": [(33, 0)], "mixed": [(1, 33), (12, 0), (4, 30)]}
PADDING = (3, 2)


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


def _written(params: Params, random: np.random.Generator) -> Problem:
    """Queries and keys of one head size and one table of angles, values of any size."""
    heads, kv_heads = params.pair("heads")
    key_dim, value_dim = params.pair("dim")
    dtype, rows = params["dtype"], BATCHES[params["batch"]]
    frequencies = tuple(10000.0 ** (-j / key_dim) for j in range(int(key_dim * params.float("turned")) // 2))
    query, key = (Rope(heads=Dim(count), head_dim=key_dim, frequencies=frequencies, dtype=dtype, scale=1.3,
                       interleaved=params.flag("interleaved")) for count in (heads, kv_heads))
    spec = QkvRopeWrite(query=query, key=key, write=WriteKV(kv_heads=Dim(kv_heads), key_dim=key_dim, value_dim=value_dim, dtype=dtype))
    made = ragged(random, rows, kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim, block_tokens=16, dtype=dtype, padding=PADDING)
    tokens = sum(count for count, _ in rows)
    q, k, v = (values(random, (tokens + PADDING[0], *shape), dtype)
               for shape in ((heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim)))
    return Problem(spec, (q, k, v, Given.CELL, Given.BATCH), packed=made.packed, paged=made.paged, held=_magnitudes(spec),
                   view=lambda result: result[:tokens])


def _magnitudes(spec: QkvRopeWrite) -> Callable[..., Mapping[str, Array]]:
    """Turned keys are sums; values are written as they come."""
    def held(q: Array, k: Array, v: Array, cell: Any, batch: Any) -> Mapping[str, Array]:
        sizes = SimpleNamespace(group=cell.group, k=np.zeros(cell.k.shape), v=np.zeros(cell.v.shape))
        spec.write.reference(spec.key.magnitude(k, batch), v, sizes, batch)
        return {"k": sizes.k}

    return held


FAMILIES = [Family("rope.plain", 1, {
    "dtype": DTYPE, "tokens": ("1", "3", "17"), "heads": ("1", "3", "8"), "dim": ("2", "6", "32", "64", "80", "128", "256"),
    "turned": ("1", "0.5", "0.25"), "base": ("10000", "500000", "100"), "scale": ("1", "1.3"), "interleaved": YES_NO,
    "first": ("0", "1", "4090", "131060", "1048583"), "shuffled": YES_NO,
}, judged(_build)), Family("rope.written", 1, {
    "dtype": DTYPE, "heads": ("4/4", "7/1"), "dim": ("32", "80", "64/33"), "turned": ("1", "0.5"), "interleaved": YES_NO,
    "batch": tuple(BATCHES),
}, judged(_written))]
