"""sample: greedy and drawn tokens equal the reference's, filters and their order, ties, edits, neighbours."""
from __future__ import annotations

import numpy as np

from ...ops import BatchShape, Dim, Sample, empty
from ..case import Family, Params
from ..problem import Given, Problem
from .make import judged

TEMPERATURES = ("0", "0.3", "1", "1.7", "mixed")


def _logits(params: Params, random: np.random.Generator, samples: int, vocab: int) -> np.ndarray:
    logits = random.normal(0, 3, (samples, vocab)).astype(np.float32)
    if params["logits"] == "ties":
        logits = np.round(logits)
    elif params["logits"] == "flat":
        logits[:] = 0.5
    elif params["logits"] == "peaked":
        logits[np.arange(samples), random.integers(0, vocab, samples)] += 20
    return logits


def _build(params: Params, random: np.random.Generator) -> Problem:
    samples, vocab = params.int("samples"), params.int("vocab")
    edits = 0 if params["edits"] == "none" else samples * min(6, vocab)
    count = min(params.int("logprobs"), vocab)
    packed, batch, sampling = empty(BatchShape(samples, samples, samples, (1,), 1, edits=edits, logprobs=count))
    batch.sample[:], batch.sample_slot[:] = np.arange(samples), 1 + random.permutation(samples)
    choices = [0.0, 0.7, 1.0] if params["temperature"] == "mixed" else [params.float("temperature")]
    sampling.temperature[:] = random.choice(choices, samples)
    sampling.top_k[:] = {"off": -1, "beyond": vocab + 5}.get(params["top_k"], 0) or (0 if params["top_k"] == "0" else int(params["top_k"]))
    sampling.top_p[:], sampling.min_p[:] = params.float("top_p"), params.float("min_p")
    sampling.seed_low[:], sampling.seed_high[:] = random.integers(-(2**31), 2**31, (2, samples))
    sampling.index[:], sampling.position[:] = random.integers(0, 4, samples), random.integers(0, 2**20, samples)
    sampling.repetition[:] = 1.0
    if edits:
        per = edits // samples
        sampling.edit_sample[:] = np.repeat(np.arange(samples), per)
        sampling.edit_token[:] = np.concatenate([random.permutation(vocab)[:per] for _ in range(samples)])
        if params["edits"] in ("penalties", "both"):
            sampling.repetition[:], sampling.presence[:], sampling.frequency[:] = 1.3, 0.4, 0.25
            sampling.edit_seen[:], sampling.edit_count[:] = random.integers(0, 2, edits), random.integers(0, 4, edits)
        if params["edits"] in ("bias", "both"):
            sampling.edit_bias[:] = np.where(random.random(edits) < 0.2, -np.inf, random.normal(0, 4, edits))
            firsts = np.arange(0, edits, per)
            sampling.edit_bias[firsts] = 1.5
    logits = _logits(params, random, samples, vocab)
    last = np.zeros(samples + 1, np.int32)

    return Problem(Sample(vocab=Dim(vocab, "vocab")), (logits, Given.SAMPLING, Given.BATCH, Given.STATE), packed=packed, last_token=last)


FAMILIES = [Family("sample.draw", 1, {
    "vocab": ("1", "2", "33", "1000", "32003"), "samples": ("1", "2", "5", "17"), "logits": ("normal", "ties", "flat", "peaked"),
    "temperature": TEMPERATURES, "top_k": ("off", "0", "1", "2", "7", "beyond"), "top_p": ("1", "0.9", "0.4", "0.001"),
    "min_p": ("0", "0.05", "1"), "edits": ("none", "penalties", "bias", "both"), "logprobs": ("-1", "0", "1", "5"),
}, judged(_build))]
