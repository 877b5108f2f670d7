"""attention: prefill, decode, mixed, chunked and resumed rows; grouped heads, windows, soft caps, sinks, odd and wide dims,
ALiBi, cells of codes, latent keys."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ops import Attention, BatchShape, Dim, empty, unpack
from .. import naive
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values
from .ragged import ORDERS, ragged

ROWS = {
    "prefill": {"one": [(1, 0)], "short": [(5, 0)], "block": [(16, 0)], "long": [(70, 0)], "ragged3": [(3, 0), (33, 0), (17, 0)],
                "ragged5": [(1, 0), (16, 0), (2, 0), (31, 0), (8, 0)], "empty": [(4, 0), (0, 0), (9, 0)]},
    "decode": {"first": [(1, 1)], "short": [(1, 5)], "edge": [(1, 15)], "past": [(1, 16)], "long": [(1, 300)],
               "ragged4": [(1, 3), (1, 47), (1, 16), (1, 130)], "ragged7": [(1, n) for n in (1, 2, 15, 31, 32, 64, 99)]},
    "mixed": {"two": [(1, 20), (7, 0)], "three": [(1, 33), (12, 0), (1, 3)], "five": [(1, 64), (20, 0), (1, 15), (4, 8), (1, 1)],
              "late": [(9, 0), (1, 40)], "empty": [(2, 9), (0, 12), (1, 0)], "many": [(1, 3 * n) for n in range(1, 7)] + [(11, 5)],
              "verify": [(4, 30), (1, 30), (4, 31)]},
    "chunked": {"second": [(8, 8)], "odd": [(7, 9)], "resumed": [(5, 32)], "tail": [(1, 48), (3, 48)], "deep": [(17, 200)],
                "pair": [(16, 16), (16, 32)], "blockwise": [(32, 64), (2, 16)]},
}
HEADS = ("4/4", "8/2", "8/1", "7/1", "14/2", "3/3", "32/8")
DIMS = ("32", "64", "80", "128", "33", "96", "64/32")
BLOCKS = ("16", "32", "8", "64", "1", "128")
FORMS = {
    "decode": {name: ROWS["decode"][name] for name in ("first", "edge", "past", "ragged4", "long")},
    "mixed": {"three": ROWS["mixed"]["three"], "verify": ROWS["mixed"]["verify"], "prefill": ROWS["prefill"]["ragged3"],
              "chunked": ROWS["chunked"]["odd"], "blockwise": ROWS["chunked"]["blockwise"]},
}
"""The batches that other forms of attention are tried on: one query a row, or any."""
CODES = ("int8", "float8_e4m3fn")


def _problem(params: Params, random: np.random.Generator, rows: Sequence[tuple[int, int]], **form: Any) -> Problem:
    """form: what the spec has besides sizes, scale and dtype."""
    heads, kv_heads = params.pair("heads")
    key_dim, value_dim = params.pair("dim")
    dtype = params["dtype"]
    spec = Attention(
        heads=Dim(heads, "heads"), kv_heads=Dim(kv_heads, "kv_heads"), key_dim=key_dim, value_dim=value_dim,
        scale=float(params.values.get("scale", key_dim**-0.5)), dtype=dtype, **form,
    )
    block, padding = int(params.values.get("block", "16")), (3, 2) if params.values.get("padding") == "yes" else (0, 0)
    made = ragged(random, rows, kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim, block_tokens=block,
                  dtype=dtype, window=spec.window, order=params.values.get("order", "scattered"), padding=padding,
                  kv_dtype=spec.kv_dtype, latent=spec.latent)
    total = sum(n for n, _ in rows)
    q = values(random, (total + padding[0], heads, key_dim), dtype, "normal")
    q[total:] = np.nan
    sink = (values(random, (heads,), dtype),) if spec.sinks else ()
    tail = (Given.WEIGHT,) if spec.sinks else ()
    whole = Problem(spec, (q, Given.CELL, Given.BATCH, *tail), weight=sink, packed=made.packed,
                    paged=replace(made.paged, written=np.zeros_like(made.paged.written)), naive=naive.attention(spec),
                    view=lambda result: result[:total])

    def alone(row: int, tokens: slice) -> tuple[Problem, slice]:
        """These tokens, the last ones of the row, in a batch of their own over the same memory."""
        batch, _ = unpack(*made.packed)
        count = tokens.stop - tokens.start
        packed, own, _ = empty(BatchShape(count, 1, 1, (batch.groups[0].table.shape[1],), max(count, 1)))
        own.positions[:], own.starts[1], own.lengths[0], own.slot[0] = batch.positions[tokens], count, batch.lengths[row], 1
        own.source[:] = -1
        own.groups[0].table[0], own.groups[0].slots[:] = batch.groups[0].table[row], batch.groups[0].slots[tokens]
        own_row = replace(whole, arguments=(q[tokens], *whole.arguments[1:]), packed=packed, rows=0, alone=None, view=lambda result: result)
        return own_row, tokens

    busy = [row for row, (count, _) in enumerate(rows) if count]
    tried = [(row, made.tokens(row)) for row in busy[:3] if len(rows) > 1]
    tried += [(row, slice(made.tokens(row).stop - 1, made.tokens(row).stop)) for row in busy if rows[row][0] > 1][:2]
    return replace(whole, rows=len(tried), alone=(lambda place: alone(*tried[place])) if tried else None)


def _window(params: Params) -> int | None:
    return None if params["window"] == "none" else params.int("window")


def _plain(kind: str) -> Family:
    return Family(f"attention.{kind}", 2, {
        "dtype": DTYPE, "heads": HEADS, "dim": DIMS, "block": BLOCKS, "batch": tuple(ROWS[kind]), "order": ORDERS,
        "padding": YES_NO,
    }, judged(lambda params, random: _problem(params, random, ROWS[kind][params["batch"]])))


def _features(kind: str) -> Family:
    def build(params: Params, random: np.random.Generator) -> Problem:
        softcap = None if params["softcap"] == "none" else params.float("softcap")
        rows = ROWS[kind][params["batch"]]
        return _problem(params, random, rows, window=_window(params), softcap=softcap, sinks=params.flag("sinks"))

    return Family(f"attention.{kind}.features", 2, {
        "dtype": DTYPE, "heads": HEADS[:5], "dim": DIMS[:5], "block": BLOCKS[:4], "batch": tuple(ROWS[kind]),
        "window": ("none", "1", "2", "15", "16", "17", "64"), "softcap": ("none", "30", "2"), "sinks": YES_NO,
        "scale": ("0.125", "0.25"),
    }, judged(build))


def _wide(kind: str) -> Family:
    """Heads of more than 128."""
    return Family(f"attention.{kind}.wide", 2, {
        "dtype": DTYPE, "heads": ("4/2", "3/3"), "dim": ("256", "576", "288/544"), "batch": tuple(FORMS[kind])[:3],
    }, judged(lambda params, random: _problem(params, random, FORMS[kind][params["batch"]])))


def _kv(kind: str) -> Family:
    """Keys and values as codes with a scale for each token and head."""
    return Family(f"attention.{kind}.kv", 2, {
        "dtype": DTYPE, "kv": CODES, "heads": ("8/2", "4/4", "8/1", "7/1", "14/2"), "dim": ("64", "128", "80", "33", "64/32", "256"),
        "block": BLOCKS[:5], "batch": tuple(FORMS[kind]), "window": ("none", "1", "15", "16", "17"),
    }, judged(lambda params, random: _problem(
        params, random, FORMS[kind][params["batch"]], kv_dtype=params["kv"], window=_window(params))))


def slopes(heads: int) -> tuple[float, ...]:
    """2^(-8/heads), 2^(-16/heads), ...: those of Press et al. (2022) where `heads` is a power of two."""
    return tuple(2 ** (-8 * (head + 1) / heads) for head in range(heads))


def _alibi(kind: str) -> Family:
    """Slopes beside what else touches a score: scale, windows, soft caps and sinks."""
    def build(params: Params, random: np.random.Generator) -> Problem:
        softcap = None if params["softcap"] == "none" else params.float("softcap")
        return _problem(params, random, FORMS[kind][params["batch"]], alibi=slopes(params.pair("heads")[0]), window=_window(params),
                        softcap=softcap, sinks=params.flag("sinks"))

    return Family(f"attention.{kind}.alibi", 2, {
        "dtype": DTYPE, "heads": ("8/2", "6/1"), "dim": ("64",), "batch": tuple(FORMS[kind])[-3:], "window": ("none", "16"),
        "softcap": ("none", "2"), "sinks": YES_NO,
    }, judged(build))


def _latent(kind: str) -> Family:
    """Values are the head of the keys, in floats or in codes."""
    def build(params: Params, random: np.random.Generator) -> Problem:
        kv_dtype = None if params["kv"] == "none" else params["kv"]
        return _problem(params, random, FORMS[kind][params["batch"]], kv_dtype=kv_dtype, latent=True)

    return Family(f"attention.{kind}.latent", 2, {
        "dtype": DTYPE, "kv": ("none", *CODES), "heads": ("8/1", "16/1", "6/2"), "dim": ("96/64", "576/512", "192/128", "72/33", "64"),
        "batch": tuple(FORMS[kind]),
    }, judged(build))


FAMILIES = [make(kind) for kind in ROWS for make in (_plain, _features)]
FAMILIES += [make(kind) for kind in FORMS for make in (_wide, _kv, _alibi, _latent)]
