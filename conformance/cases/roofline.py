"""roofline: linear and attention in the shapes of real models, timed against what the machine can do. Speed fails nothing.

The output of the timed run is what is checked; how near it came to the machine's limits stands in the result's words.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ops import Attention, BatchShape, Dim, Linear, empty, unpack
from .. import naive
from ..address import Address
from ..case import Family, Outcome, Params, Verdict
from ..limits import measure_limits
from ..problem import Given, Problem
from ..rig import Rig
from ..speed import Work, measure
from .make import values
from .ragged import ragged

BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Shape:
    """One layer of a real model."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int

    @property
    def linears(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """name -> (input, outputs): fused as a model does it."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"qkv": (self.hidden, (queries, keys, keys)), "out": (queries, (self.hidden,)),
                "up": (self.hidden, (self.mlp, self.mlp)), "down": (self.mlp, (self.hidden,))}


SHAPES = {"llama-1b": Shape(2048, 32, 8, 64, 8192), "qwen-0.5b": Shape(896, 14, 2, 64, 4864)}
ROWS: dict[str, Sequence[tuple[int, int]]] = {"prefill512": [(512, 0)], "decode16x512": [(1, 511)] * 16}
"""What stands in a batch: (queries, context before them) of each row."""


def linear(sizes: tuple[int, tuple[int, ...]], tokens: int, dtype: str, random: np.random.Generator) -> Work:
    inputs, outputs = sizes
    spec = Linear(input=Dim(inputs), outputs=tuple(map(Dim, outputs)), dtype=dtype)
    packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
    batch.sample[0] = random.integers(tokens)
    x, weight = values(random, (tokens, inputs), dtype), tuple(values(random, (size, inputs), dtype) for size in outputs)
    return Work(Problem(spec, (x, Given.WEIGHT, Given.BATCH), weight=weight, packed=packed))


def attention(shape: Shape, rows: Sequence[tuple[int, int]], dtype: str, random: np.random.Generator) -> Work:
    dim, heads, kv_heads = shape.head_dim, shape.heads, shape.kv_heads
    spec = Attention(heads=Dim(heads), kv_heads=Dim(kv_heads), key_dim=dim, value_dim=dim, scale=dim**-0.5, dtype=dtype)
    made = ragged(random, rows, kv_heads=kv_heads, key_dim=dim, value_dim=dim, block_tokens=BLOCK_TOKENS, dtype=dtype)
    batch, _ = unpack(*made.packed)
    q = values(random, (len(batch.positions), heads, dim), dtype)
    batch.sample[0] = random.integers(len(q))
    paged = replace(made.paged, written=np.zeros_like(made.paged.written))
    whole = Problem(spec, (q, Given.CELL, Given.BATCH), packed=made.packed, paged=paged, naive=naive.attention(spec))

    def row(token: int) -> Problem:
        """One query, after the same memory."""
        table = batch.groups[0].table[int(batch.row[token])]
        packed, own, _ = empty(BatchShape(1, 1, 1, (len(table),), 1))
        own.positions[:], own.starts[1], own.lengths[0] = batch.positions[token], 1, batch.positions[token] + 1
        own.groups[0].table[0] = table
        return replace(whole, arguments=(q[token : token + 1], *whole.arguments[1:]), packed=packed)

    return Work(whole, row)


def _timed(build: Callable[[Params, np.random.Generator], Work]) -> Callable[[Params, Address, Rig], Outcome]:
    def run(params: Params, address: Address, rig: Rig) -> Outcome:
        found = measure(rig, build(params, address.random()), measure_limits(rig.platform))
        return Outcome(Verdict.PASS, str(found), (found.kernel,))

    return run


def _linear(params: Params, random: np.random.Generator) -> Work:
    return linear(SHAPES[params["model"]].linears[params["layer"]], params.int("m"), params["dtype"], random)


def _attention(params: Params, random: np.random.Generator) -> Work:
    return attention(SHAPES[params["model"]], ROWS[params["batch"]], params["dtype"], random)


FAMILIES = [
    Family("roofline.linear", 5, {
        "m": ("1", "16", "48", "512"), "model": tuple(SHAPES), "layer": ("down",), "dtype": ("bfloat16",),
    }, _timed(_linear)),
    Family("roofline.attention", 5, {"batch": tuple(ROWS), "model": tuple(SHAPES), "dtype": ("bfloat16",)}, _timed(_attention)),
]
