"""Each op alone on a platform, in the shapes of real models, against what the machine can do at most."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from ..conformance.case import Failed, Unsupported
from ..conformance.cases.make import values
from ..conformance.cases.ragged import ragged
from ..conformance.cases.roofline import BLOCK_TOKENS, ROWS, SHAPES, Shape, attention, linear
from ..conformance.limits import Limits, measure_limits
from ..conformance.problem import Given, Problem
from ..conformance.rig import Rig
from ..conformance.speed import Work, measure
from ..core.loader import Progress
from ..errors import ConfigError, suggest
from ..ops import BatchShape, Dim, Embedding, GatedActivation, Packed, RmsNorm, Rope, Sample, WriteKV, empty
from ..platforms import registry
from .machine import describe_machine, describe_versions, today
from .peers.protocol import peak_bytes

FORMAT = 1
TOKENS = (1, 16, 48, 512)
VOCAB = 32_000
Build = Callable[[str, np.random.Generator], Work]
"""(dtype, generator) -> the work."""


def works() -> dict[str, Build]:
    """name -> how it is built; names begin with their op."""
    made: dict[str, Build] = {}
    for model, shape in SHAPES.items():
        for layer, sizes in shape.linears.items():
            made |= {f"linear {model} {layer} m={tokens}": partial(linear, sizes, tokens) for tokens in TOKENS}
    for op, build in (("attention", attention), ("write_kv", _write_kv)):
        made |= {f"{op} {model} {batch}": partial(build, shape, rows) for model, shape in SHAPES.items() for batch, rows in ROWS.items()}
    for op, rowwise in (("rms_norm", _rms_norm), ("rope", _rope), ("gated_activation", _gated), ("embedding", _embedding)):
        made |= {f"{op} {model} m={tokens}": partial(rowwise, shape, tokens) for model, shape in SHAPES.items() for tokens in TOKENS[1::2]}
    return made | {f"sample vocab={VOCAB} samples={samples}": partial(_sample, samples) for samples in TOKENS[:2]}


def run_ops(platform: str, ops: Sequence[str] = (), dtype: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The record of `inferplane bench ops`. ops: only these. Raises `ConfigError` for what nothing here measures."""
    chosen = _chosen(ops)
    opened = registry.named(platform)
    try:
        rig, limits = Rig(opened), measure_limits(opened)
        dtype = _dtype(dtype, opened.capabilities.dtypes)
        results = []
        for done, (name, build) in enumerate(chosen.items(), 1):
            results.append(_measured(rig, name, build, dtype, limits))
            if progress:
                progress("ops", done, len(chosen))
        return {
            "format": FORMAT, "kind": "ops", "date": today(), "machine": describe_machine(), "versions": describe_versions(),
            "platform": {"name": opened.name, "grade": opened.capabilities.grade, "devices": list(opened.capabilities.devices)},
            "dtype": dtype, "limits": asdict(limits), "results": results, "peak_bytes": peak_bytes(),
        }
    finally:
        opened.close()


def _chosen(ops: Sequence[str]) -> dict[str, Build]:
    known = works()
    names = {name.split()[0] for name in known}
    for op in ops:
        if op not in names:
            raise ConfigError(f"op {op!r} is not measured. {suggest(op, names)}")
    return {name: build for name, build in known.items() if not ops or name.split()[0] in ops}


def _dtype(asked: str | None, known: Sequence[str]) -> str:
    if asked is not None and asked not in known:
        raise ConfigError(f"dtype {asked!r} is not one that the platform computes in. {suggest(asked, known)}")
    return asked or known[0]


def _measured(rig: Rig, name: str, build: Build, dtype: str, limits: Limits) -> dict[str, Any]:
    """A row of the record. refused, wrong: the platform's own no, or the oracle's."""
    row: dict[str, Any] = {"work": name, "refused": None, "wrong": None}
    try:
        found = measure(rig, build(dtype, np.random.default_rng(0)), limits)
    except Unsupported as reason:
        return row | {"refused": str(reason)}
    except Failed as reason:
        return row | {"wrong": str(reason)}
    return row | asdict(found) | {"of_limit": found.of_limit}


def _batch(tokens: int, random: np.random.Generator) -> Packed:
    packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
    batch.positions[:], batch.sample[0] = np.arange(tokens), random.integers(tokens)
    return packed


def _rms_norm(shape: Shape, tokens: int, dtype: str, random: np.random.Generator) -> Work:
    spec = RmsNorm(size=shape.hidden, epsilon=1e-5, dtype=dtype)
    x, weight = values(random, (tokens, spec.size), dtype), values(random, (spec.size,), dtype)
    return Work(Problem(spec, (x, Given.WEIGHT), weight=(weight,), packed=_batch(tokens, random)))


def _rope(shape: Shape, tokens: int, dtype: str, random: np.random.Generator) -> Work:
    half = shape.head_dim // 2
    frequencies = tuple(500000.0 ** (-j / half) for j in range(half))
    spec = Rope(heads=Dim(shape.heads), head_dim=shape.head_dim, frequencies=frequencies, dtype=dtype)
    x = values(random, (tokens, shape.heads, shape.head_dim), dtype)
    return Work(Problem(spec, (x, Given.BATCH), packed=_batch(tokens, random)))


def _gated(shape: Shape, tokens: int, dtype: str, random: np.random.Generator) -> Work:
    gate, up = (values(random, (tokens, shape.mlp), dtype) for _ in range(2))
    return Work(Problem(GatedActivation(kind="silu", dtype=dtype), (gate, up), packed=_batch(tokens, random)))


def _embedding(shape: Shape, tokens: int, dtype: str, random: np.random.Generator) -> Work:
    spec = Embedding(vocab=Dim(VOCAB), size=shape.hidden, dtype=dtype)
    table = np.resize(values(random, (1009, spec.size), dtype), (VOCAB, spec.size))
    ids = random.integers(0, VOCAB, tokens).astype(np.int32)
    return Work(Problem(spec, (ids, Given.WEIGHT), weight=(table,), packed=_batch(tokens, random)))


def _write_kv(shape: Shape, rows: Sequence[tuple[int, int]], dtype: str, random: np.random.Generator) -> Work:
    dim, heads = shape.head_dim, shape.kv_heads
    made = ragged(random, rows, kv_heads=heads, key_dim=dim, value_dim=dim, block_tokens=BLOCK_TOKENS, dtype=dtype)
    k, v = (values(random, (made.packed.shape.tokens, heads, dim), dtype) for _ in range(2))
    spec = WriteKV(kv_heads=Dim(heads), key_dim=dim, value_dim=dim, dtype=dtype)
    return Work(Problem(spec, (k, v, Given.CELL, Given.BATCH), packed=made.packed, paged=made.paged))


def _sample(samples: int, dtype: str, random: np.random.Generator) -> Work:
    """Drawn at temperature 1 with top-p, from float32 logits whatever the dtype."""
    packed, batch, sampling = empty(BatchShape(samples, samples, samples, (1,), 1))
    batch.sample[:], batch.sample_slot[:] = np.arange(samples), 1 + np.arange(samples)
    sampling.temperature[:], sampling.top_p[:], sampling.repetition[:] = 1.0, 0.95, 1.0
    sampling.seed_low[:] = random.integers(0, 2**31, samples)
    logits = random.normal(0, 3, (samples, VOCAB)).astype(np.float32)
    return Work(Problem(Sample(vocab=Dim(VOCAB)), (logits, Given.SAMPLING, Given.BATCH, Given.STATE), packed=packed,
                        last_token=np.zeros(samples + 1, np.int32)))
