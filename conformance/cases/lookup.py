"""embedding, take_rows, derive, split and concat: rows, tokens and parts of rows picked and put together, to the bit."""
from __future__ import annotations

import numpy as np

from ...ops import BatchShape, Concat, Derive, Dim, Embedding, Split, TakeRows, empty
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, judged, values

IDS = ("random", "ends", "same", "descending")


def _indices(random: np.random.Generator, count: int, limit: int, kind: str) -> np.ndarray:
    made = {
        "random": random.integers(0, limit, count), "ends": np.where(np.arange(count) % 2, limit - 1, 0),
        "same": np.full(count, limit // 2), "descending": (limit - 1 - np.arange(count)) % limit,
    }
    return made[kind].astype(np.int32)


def _embedding(params: Params, random: np.random.Generator) -> Problem:
    vocab, size = params.int("vocab"), params.int("size")
    table = values(random, (vocab, size), params["dtype"], params["values"])
    tokens = _indices(random, params.int("tokens"), vocab, params["ids"])
    return Problem(Embedding(vocab=Dim(vocab, "vocab"), size=size, dtype=params["dtype"]), (tokens, Given.WEIGHT), weight=(table,))


def _take_rows(params: Params, random: np.random.Generator) -> Problem:
    rows, size = params.int("rows"), params.int("size")
    x = values(random, (rows, size), params["dtype"], params["values"])
    return Problem(TakeRows(size=Dim(size), dtype=params["dtype"]), (x, _indices(random, params.int("samples"), rows, params["ids"])))


def _derive(params: Params, random: np.random.Generator) -> Problem:
    tokens, slots = params.int("tokens"), params.int("slots")
    packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
    batch.tokens[:] = random.integers(0, 50_000, tokens)
    late = {"none": np.zeros(tokens), "all": np.ones(tokens), "some": random.integers(0, 2, tokens)}[params["late"]].astype(bool)
    batch.source[:] = np.where(late, random.integers(0, slots + 1, tokens), -1)
    last = random.integers(0, 50_000, slots + 1).astype(np.int32)
    return Problem(Derive(), (Given.BATCH, Given.STATE), packed=packed, last_token=last, view=lambda result: result.tokens)


def _parts(params: Params) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the shape before the last dimension, sizes)."""
    before, sizes = (tuple(map(int, params[name].split("x"))) for name in ("shape", "sizes"))
    return before, sizes


def _split(params: Params, random: np.random.Generator) -> Problem:
    before, sizes = _parts(params)
    x = values(random, (*before, sum(sizes)), params["dtype"], params["values"])
    return Problem(Split(sizes=sizes, dtype=params["dtype"]), (x,))


def _concat(params: Params, random: np.random.Generator) -> Problem:
    before, sizes = _parts(params)
    parts = tuple(values(random, (*before, size), params["dtype"], params["values"]) for size in sizes)
    return Problem(Concat(sizes=sizes, dtype=params["dtype"]), parts)


PARTS = {
    "dtype": DTYPE, "shape": ("0", "1", "17", "5x1", "3x16", "0x4"), "sizes": ("1x1", "7x64", "64x7", "512x64", "3x1x5"),
    "values": ("normal", "special"),
}

FAMILIES = [
    Family("lookup.embedding", 1, {
        "dtype": DTYPE, "vocab": ("1", "2", "33", "257", "5000"), "size": ("1", "7", "64", "130"),
        "tokens": ("0", "1", "5", "64"), "ids": IDS, "values": ("normal", "special"),
    }, judged(_embedding)),
    Family("lookup.take_rows", 1, {
        "dtype": DTYPE, "rows": ("1", "2", "17", "130"), "size": ("1", "7", "64", "130"),
        "samples": ("0", "1", "4", "19"), "ids": IDS, "values": ("normal", "special"),
    }, judged(_take_rows)),
    Family("lookup.derive", 1, {
        "tokens": ("1", "2", "17", "256"), "slots": ("1", "4", "256"), "late": ("none", "some", "all"),
    }, judged(_derive)),
    Family("lookup.split", 1, PARTS, judged(_split)),
    Family("lookup.concat", 1, PARTS, judged(_concat)),
]
