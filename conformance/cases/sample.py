"""sample: greedy and drawn tokens equal the reference's, filters and their order, ties, edits, neighbours."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ops import BatchShape, Dim, Sample, empty
from ...ops.sample import mask_words
from ..case import Family, Params
from ..problem import Given, Problem
from .make import judged

TEMPERATURES = ("0", "0.3", "1", "1.7", "mixed")


def _logits(params: Params, random: np.random.Generator, samples: int, vocab: int) -> np.ndarray:
    """flat: one value in each row; in every other row it is 0, of both signs."""
    logits = random.normal(0, 3, (samples, vocab)).astype(np.float32)
    if params["logits"] == "ties":
        logits = np.round(logits)
    elif params["logits"] == "flat":
        logits[:] = 0.5
        logits[1::2] = 0.0
        logits[1::2, ::2] = -0.0
    elif params["logits"] == "peaked":
        logits[np.arange(samples), random.integers(0, vocab, samples)] += 20
    elif params["logits"] == "negative":
        logits -= 20
    elif params["logits"] == "pairs":
        logits[:, random.permutation(vocab)[:2]] = 40
    return logits


def _each(random: np.random.Generator, said: str, samples: int, mixed: Sequence[float]) -> np.ndarray:
    """[samples] of one value, or of several."""
    return random.choice(mixed, samples) if said == "mixed" else np.full(samples, float(said))


def _edited_tokens(random: np.random.Generator, logits: np.ndarray, count: int) -> np.ndarray:
    """[samples, count] different tokens of each sample, the best one among them."""
    tokens = np.stack([random.permutation(logits.shape[1])[:count] for _ in logits])
    for row, best in zip(tokens, logits.argmax(axis=-1), strict=True):
        if best not in row:
            row[count // 2] = best
    return tokens


def _mask(said: str, random: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """[samples, words]: what each sample may draw; bits past the vocabulary are set, too."""
    samples, vocab = logits.shape
    allowed = np.ones((samples, 32 * mask_words(vocab)), bool)
    if said == "one":
        allowed[:, :vocab] = np.arange(vocab) == random.integers(0, vocab, (samples, 1))
    else:
        allowed[:, :vocab] = random.random((samples, vocab)) < 0.5
        allowed[np.arange(samples), logits.argmin(axis=-1)] = True
        allowed[np.arange(samples), logits.argmax(axis=-1)] = vocab == 1
    if said == "some-rows":
        allowed[::2] = True
    return np.packbits(allowed, axis=-1, bitorder="little").view("<i4")


def _build(params: Params, random: np.random.Generator) -> Problem:
    samples, vocab = params.int("samples"), params.int("vocab")
    edits = 0 if params["edits"] == "none" else samples * min(6, vocab)
    count, words = min(params.int("logprobs"), vocab), 0 if params.values.get("mask", "none") == "none" else mask_words(vocab)
    packed, batch, sampling = empty(BatchShape(samples, samples, samples, (1,), 1, edits=edits, mask_words=words, logprobs=count))
    batch.sample[:], batch.sample_slot[:] = np.arange(samples), 1 + random.permutation(samples + 3)[:samples]
    if samples > 2:
        batch.sample_slot[random.integers(samples)] = 0
    sampling.temperature[:] = _each(random, params["temperature"], samples, (0.0, 0.7, 1.0))
    top_k = {"off": "-1", "beyond": str(vocab + 5)}.get(params["top_k"], params["top_k"])
    sampling.top_k[:] = _each(random, top_k, samples, (-1, 0, 1, 3))
    sampling.top_p[:] = _each(random, params["top_p"], samples, (1.0, 1.0, 0.6))
    sampling.min_p[:] = _each(random, params["min_p"], samples, (0.0, 0.0, 0.2))
    sampling.seed_low[:], sampling.seed_high[:] = random.integers(-(2**31), 2**31, (2, samples))
    sampling.index[:], sampling.position[:] = random.integers(0, 4, samples), random.integers(0, 2**20, samples)
    sampling.repetition[:] = 1.0
    logits = _logits(params, random, samples, vocab)
    if edits:
        per = edits // samples
        sampling.edit_sample[:] = np.repeat(np.arange(samples), per)
        sampling.edit_token[:] = _edited_tokens(random, logits, per).reshape(-1)
        if params["edits"] in ("penalties", "both"):
            sampling.repetition[:] = random.choice([1.3, 1.9, 0.7], samples)
            sampling.presence[:] = random.choice([0.0, 0.4, 2.0], samples)
            sampling.frequency[:] = random.choice([0.0, 0.25, 1.5], samples)
            sampling.edit_seen[:], sampling.edit_count[:] = random.integers(0, 2, edits), random.integers(0, 4, edits)
        if params["edits"] in ("bias", "both"):
            sampling.edit_bias[:] = np.where(random.random(edits) < 0.2, -np.inf, random.normal(0, 4, edits))
            firsts = np.arange(0, edits, per)
            sampling.edit_bias[firsts] = 1.5
    if words:
        sampling.mask[:] = _mask(params["mask"], random, logits)
    last = random.integers(0, vocab, samples + 4).astype(np.int32)
    return Problem(Sample(vocab=Dim(vocab, "vocab")), (logits, Given.SAMPLING, Given.BATCH, Given.STATE), packed=packed, last_token=last)


FAMILIES = [Family("sample.draw", 1, {
    "vocab": ("1", "2", "33", "1024", "32003"), "samples": ("1", "2", "5", "17"),
    "logits": ("normal", "ties", "flat", "peaked", "negative", "pairs"),
    "temperature": TEMPERATURES, "top_k": ("off", "0", "1", "2", "7", "beyond", "mixed"), "top_p": ("1", "0.9", "0.5", "0.001", "mixed"),
    "min_p": ("0", "0.05", "1", "mixed"), "edits": ("none", "penalties", "bias", "both"), "logprobs": ("-1", "0", "1", "5"),
}, judged(_build)), Family("sample.masked", 1, {
    "vocab": ("1", "31", "32", "33", "1024", "32003"), "samples": ("1", "2", "5"), "logits": ("normal", "ties", "flat", "peaked"),
    "temperature": ("0", "1", "mixed"), "top_k": ("off", "2", "beyond"), "top_p": ("1", "0.5"), "min_p": ("0", "0.05"),
    "edits": ("none", "bias"), "logprobs": ("-1", "1"), "mask": ("half", "one", "some-rows"),
}, judged(_build), lambda params: params["mask"] != "one" or params["edits"] == "none")]
