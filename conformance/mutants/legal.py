"""Legal variants: other orders, other roundings, other formulas of the same accuracy. No case may fail one of them."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...ops import DTYPES, Add, Attention, Linear, Moe, Multiply, Sample, Sampled, WriteKV
from ...ops.sample import edited, kept, logprobs, row_uniforms
from . import experts, gated, linear, memory, parallel, quantized, rows, sampling
from .plant import Run, Variant, kernel
from .rows import quiet, single
from .tiled_attention import Array, Way, attend, attend_in_splits, score, tilt

LOG2E = np.float32(np.log2(np.e))


def flushed(array: Array) -> Array:
    """Subnormals of float32 as zero."""
    return np.where(np.abs(array) < np.float32(2.0**-126), np.float32(0), array)


# Attention.

def _from_zero(spec: Attention, at: Array, length: int) -> tuple[int, int]:
    """Tiles begin at multiples of their size: some have no key that is seen."""
    return 0, length


def _backwards(first: int, stop: int, keys: int) -> Iterable[int]:
    return [*range(first, stop, keys)][::-1]


def _in_turns(first: int, stop: int, keys: int) -> Iterable[int]:
    """Every third tile, then the others."""
    tiles = [*range(first, stop, keys)]
    return [*tiles[::3], *tiles[1::3], *tiles[2::3]]


def _weights_in_the_dtype(spec: Attention, q: Array, *rest: Any) -> Array:
    """As matrix units want them."""
    return attend(Way(weights=lambda weights: single(weights.astype(q.dtype))), spec, q, *rest)


def _tanh_by_exp(spec: Attention, raw: Array) -> Array:
    if spec.softcap is None:
        return score(spec, raw)
    return np.float32(spec.softcap) * (1 - 2 / (1 + np.exp(raw * np.float32(2 * spec.scale / spec.softcap))))


def _query_by_query(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Each query as a row of its own, in tiles that begin at multiples of their size: batch-invariant by construction."""
    counts = np.diff(batch.starts)
    real = int(batch.starts[-1])
    owner = np.repeat(np.arange(len(counts)), counts)
    lengths = batch.lengths[owner] - batch.starts[owner + 1] + 1 + np.arange(real)
    groups = tuple(rows._replace(table=rows.table[owner]) for rows in batch.groups)
    single_rows = batch._replace(starts=np.arange(real + 1), lengths=lengths, groups=groups)
    out = np.zeros((*q.shape[:-1], spec.value_dim), q.dtype)
    out[:real] = attend(Way(span=_from_zero), spec, q[:real], cell, single_rows, *rest)
    return out


def _scratch_in_the_null_block(spec: Attention, q: Array, cell: Any, *rest: Any) -> Array:
    """Block 0 belongs to nobody."""
    cell.k[0] = 7
    for name in ("v", "k_scale", "v_scale"):
        if (array := getattr(cell, name, None)) is not None:
            array[0] = 7 if array.dtype == np.int8 else np.nan
    return attend(Way(), spec, q, cell, *rest)


def _scaled_afterwards(spec: Attention, q: Array, cell: Any, batch: Any, *rest: Any) -> Array:
    """Scores and weights are multiplied by the scales, not keys and values: here by widening the whole cell first."""
    if spec.kv_dtype is None:
        return attend(Way(), spec, q, cell, batch, *rest)
    wide = {name: single(getattr(cell, name)) * getattr(cell, f"{name}_scale") for name in (("k",) if spec.latent else ("k", "v"))}
    return attend(Way(), replace(spec, kv_dtype=None), q, SimpleNamespace(group=cell.group, **wide), batch, *rest)


def _decoded_in_the_dtype(spec: Attention, q: Array, *rest: Any) -> Array:
    """Keys and values as matrix units of the queries' dtype want them."""
    return attend(Way(decoded=lambda array, _: single(array.astype(q.dtype))), spec, q, *rest)


def _by_key_alone(spec: Attention, scores: Array, at: Array, seen: Array) -> Array:
    """Without a sink, what all keys of a query have in common does not matter."""
    if spec.alibi is None or spec.sinks:
        return tilt(spec, scores, at, seen)
    return scores + np.asarray(spec.alibi, np.float32)[:, None, None] * (seen - at[:1]).astype(np.float32)


def attention(name: str, why: str, **other: Any) -> Variant:
    return kernel(name, "attention", why, partial(attend, Way(**other)))


ATTENTION = [
    attention("tiles_of_5_keys", "another tile", keys=5),
    attention("tiles_of_64_keys", "another tile", keys=64),
    attention("one_tile", "a softmax in two passes", keys=304),
    attention("tiles_backwards", "another order", tiles=_backwards),
    attention("tiles_in_turns", "another order", tiles=_in_turns),
    attention("tiles_from_zero", "tiles with no visible key", span=_from_zero),
    attention("exp2", "the log2 domain", exp=lambda a: np.exp2(a * LOG2E)),
    attention("subnormals_flushed", "flush to zero", exp=lambda a: flushed(np.exp(a))),
    attention("tanh_by_exp", "another formula", score=_tanh_by_exp),
    attention("sinks_not_in_the_maximum", "what overflows leaves nothing to see", sink_in_peak=False),
    kernel("weights_in_the_dtype", "attention", "matrix units", _weights_in_the_dtype),
    kernel("splits_merged", "attention", "split-K", partial(attend_in_splits, Way(), lambda peaks, peak: np.exp(peaks - peak))),
    kernel("query_by_query", "attention", "batch-invariant, as it says", _query_by_query, batch_invariant=True),
    attention("alibi_by_key_alone", "a softmax does not see a common term", tilt=_by_key_alone),
    attention("alibi_in_float64", "another precision",
              tilt=lambda spec, scores, at, seen: scores if spec.alibi is None
              else single(scores + np.asarray(spec.alibi)[:, None, None] * (seen - at))),
    kernel("codes_decoded_in_the_dtype", "attention", "matrix units", _decoded_in_the_dtype),
    kernel("cell_widened_first", "attention", "another order", _scaled_afterwards),
    kernel("scratch_in_the_null_block", "attention", "block 0 is nobody's", _scratch_in_the_null_block),
]


# Products.

def products(name: str, why: str, product: Callable[[Array, Array], Array], **fields: Any) -> Variant:
    """A linear whose result is product(x [tokens, input], w [output, input]) in float32, bias and rounding apart."""
    def run(spec: Linear, x: Array, weight: Sequence[Array], batch: Any) -> Any:
        dtype, number = DTYPES[spec.out_dtype or spec.dtype], len(spec.outputs)
        made = []
        for place, tensor in enumerate(weight[:number]):
            bias = single(weight[number + place]) if spec.bias else np.zeros(len(tensor), np.float32)
            made.append((product(single(x), single(tensor)) + bias).astype(dtype))
        return tuple(made) if number > 1 else made[0]

    return kernel(name, "linear", why, quiet(run), **fields)


def _from_first_to_last(x: Array, w: Array) -> Array:
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        total += x[:, k, None] * w[None, :, k]
    return total


def _fused(x: Array, w: Array) -> Array:
    """Each product added with one rounding."""
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        total = single(total.astype(np.float64) + x[:, k, None].astype(np.float64) * w[None, :, k].astype(np.float64))
    return total


def _splits(x: Array, w: Array) -> Array:
    """Four parts of the input axis by themselves."""
    parts = np.array_split(np.arange(x.shape[1]), 4)
    return np.stack([x[:, part] @ w[:, part].T for part in parts]).sum(axis=0, dtype=np.float32)


def _row_by_row(x: Array, w: Array) -> Array:
    return np.concatenate([_from_first_to_last(row[None], w) for row in x]) if len(x) else np.zeros((0, len(w)), np.float32)


def _hidden_in_the_dtype(spec: Moe, x: Array, chosen: Array, weights: Array, weight: Sequence[Array], batch: Any) -> Array:
    """Token by token; both products and the hidden layer rounded to the dtype."""
    def narrow(array: Array) -> Array:
        return single(array.astype(x.dtype))

    def linear(place: int, row: Array) -> Array:
        return narrow(experts.RIGHT.bias(narrow(single(weight[place][expert]) @ row), weight, place, expert))

    out = np.zeros(x.shape, np.float32)
    for token, rank in np.ndindex(*chosen.shape):
        expert, row = int(chosen[token, rank]), single(x[token])
        hidden = narrow(experts.RIGHT.gated(spec, linear(0, row), linear(1, row)))
        out[token] += weights[token, rank] * linear(2, hidden)
    return out.astype(x.dtype)


def _ranks_backwards(spec: Moe, x: Array, chosen: Array, weights: Array, *rest: Any) -> Array:
    return experts.grouped(experts.RIGHT, spec, x, chosen[:, ::-1], weights[:, ::-1], *rest)


PRODUCTS = [
    kernel("tiles_of_7", "linear", "another tile", partial(linear.multiply, replace(linear.RIGHT, k=7))),
    kernel("tiles_of_128", "linear", "another tile", partial(linear.multiply, replace(linear.RIGHT, k=128))),
    products("from_first_to_last", "one sum", _from_first_to_last),
    products("from_last_to_first", "one sum, backwards", lambda x, w: _from_first_to_last(x[:, ::-1], w[:, ::-1])),
    products("fused_multiply_add", "FMA", _fused),
    products("split_in_four", "split-K", _splits),
    products("row_by_row", "batch-invariant, as it says", _row_by_row, batch_invariant=True),
    kernel("experts_backwards", "moe", "another order",
           partial(experts.grouped, replace(experts.RIGHT, experts=lambda n: range(n - 1, -1, -1)))),
    kernel("ranks_backwards", "moe", "another order", _ranks_backwards),
    kernel("hidden_in_the_dtype", "moe", "not fused", _hidden_in_the_dtype),
    kernel("float32", "router", "single precision", lambda *given: experts.route(*given, **experts.CAREFUL)),
    kernel("exp2", "router", "the log2 domain", lambda *given: experts.route(
        *given, **{**experts.CAREFUL, "gates": lambda spec, x: 1 / (1 + np.exp2(-x * LOG2E)) if spec.sigmoid else _softmax2(x)})),
]


def _softmax2(logits: Array) -> Array:
    powers = np.exp2((logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)) * LOG2E)
    return powers / powers.sum(axis=-1, keepdims=True)


# Rows.

def _newton(mean: Array, epsilon: float) -> Array:
    """1 / sqrt from a guess of half precision and two Newton steps."""
    value = mean + np.float32(epsilon)
    power = np.float32(2) ** np.floor(np.log2(value) / 2)
    scaled = value / power**2
    guess = single((1 / np.sqrt(scaled)).astype(np.float16))
    for _ in range(2):
        guess = guess * (np.float32(1.5) - np.float32(0.5) * scaled * guess * guess)
    return guess / power


def _in_blocks(squares: Array) -> Array:
    """Lanes of 32 first, then across them."""
    size = squares.shape[-1]
    padded = np.pad(squares, [(0, 0)] * (squares.ndim - 1) + [(0, -size % 32)])
    lanes = padded.reshape(*squares.shape[:-1], -(-size // 32), 32).sum(axis=-2)
    return np.add.reduce(lanes, axis=-1, keepdims=True) / np.float32(size)


def _one_by_one(squares: Array) -> Array:
    return np.cumsum(squares, axis=-1, dtype=np.float32)[..., -1:] / np.float32(squares.shape[-1])


def _shifted(values: Array, centered: Array) -> Array:
    """One pass around the first value: no cancellation to speak of."""
    moved = values - values[..., :1]
    return (moved * moved).mean(axis=-1, keepdims=True) - moved.mean(axis=-1, keepdims=True) ** 2


def _sum_rounded(spec: Any, x: Array, *rest: Any) -> Any:
    return rows.add_rms(spec, x, *rest, total=lambda total: single(total.astype(x.dtype)))


def _sigmoid_by_tanh(spec: Any, x: Array) -> Array:
    values = single(x)
    if spec.kind != "silu":
        return rows.activate(spec, x)
    return np.asarray(values * (np.float32(0.5) + np.float32(0.5) * np.tanh(values / 2))).astype(x.dtype)


def _rounded_between(spec: Any, gate: Array, up: Array) -> Array:
    return (single(rows.activate(spec, gate)) * single(up)).astype(gate.dtype)


def _flushing(run: Run) -> Run:
    """Subnormals of float32 in and out become zero."""
    def flushing(spec: Any, *arrays: Array) -> Array:
        made = run(spec, *(flushed(single(array)) for array in arrays))
        return flushed(single(made)).astype(arrays[0].dtype)

    return quiet(flushing)


def _plus(spec: Add, a: Array, b: Array) -> Array:
    return a + b


def _times(spec: Multiply, a: Array, b: Array) -> Array:
    return a * b


def norm(name: str, why: str, op: str, run: Callable[..., Any], **other: Any) -> Variant:
    return kernel(name, op, why, quiet(partial(run, **other)))


ROWS = [
    norm("newton", "two Newton steps", "rms_norm", rows.rms, scale=_newton),
    norm("lanes_of_32", "another order", "rms_norm", rows.rms, mean=_in_blocks),
    norm("one_by_one", "one sum", "rms_norm", rows.rms, mean=_one_by_one),
    norm("float32", "single precision", "layer_norm", rows.layer),
    norm("lanes_of_32", "another order", "layer_norm", rows.layer, mean=lambda values, centered: _in_blocks(centered * centered)),
    norm("float32", "fused: the sum is not rounded", "add_rms_norm", rows.add_rms),
    kernel("sum_rounded", "add_rms_norm", "not fused", quiet(_sum_rounded)),
    kernel("float32", "rope", "sines rounded to float32", rows.turn),
    kernel("sigmoid_by_tanh", "activation", "another formula", quiet(_sigmoid_by_tanh)),
    kernel("rounded_between", "gated_activation", "not fused", quiet(_rounded_between)),
    kernel("subnormals_flushed", "add", "flush to zero", _flushing(_plus)),
    kernel("subnormals_flushed", "multiply", "flush to zero", _flushing(_times)),
    kernel("factor_in_float32", "scale", "single precision", quiet(lambda spec, x: (single(x) * np.float32(spec.factor)).astype(x.dtype))),
]


# Sampling and memory.

def _race(sampling_: Any, row: int, vocab: int) -> Array:
    """-log(-log u) from the same bits, by log1p."""
    uniform = row_uniforms(sampling_, row, vocab)
    return -np.log(-np.log1p(uniform - 1))


def _exponential_race(spec: Sample, logits: Array, s: Any, batch: Any, state: Any) -> Sampled:
    """The largest of weight / exponential number: the Gumbel maximum without its outer logarithm."""
    changed = edited(np.asarray(logits, np.float64), s)
    tokens = changed.argmax(axis=-1).astype(np.int32)
    for row in np.flatnonzero(s.temperature > 0):
        scores = kept(changed[row] / s.temperature[row], int(s.top_k[row]), float(s.top_p[row]), float(s.min_p[row]))
        tokens[row] = np.argmax(np.exp(scores - scores.max()) / -np.log(row_uniforms(s, row, len(scores))))
    state.last_token[batch.sample_slot] = tokens
    return Sampled(tokens, *logprobs(np.asarray(logits, np.float64), tokens, batch.shape.logprobs))


def _float32_logprobs(*arguments: Any) -> Sampled:
    """Log-probabilities from a log-sum-exp in float32."""
    _, logits, *_ = arguments
    sampled = sampling.draw(sampling.RIGHT, *arguments)
    if sampled.logprob is None:
        return sampled
    peak = logits.max(axis=-1, keepdims=True)
    normal = logits - (peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True)))
    chosen = np.take_along_axis(normal, sampled.tokens[:, None].astype(np.int64), axis=-1)[:, 0]
    return sampled._replace(logprob=chosen, top_logprobs=np.take_along_axis(normal, sampled.top_tokens.astype(np.int64), axis=-1))


def _padding_left_out(spec: WriteKV, k: Array, v: Array, cell: Any, batch: Any) -> None:
    """What goes to the null block need not be written."""
    size = cell.k.shape[2]
    memory.write(replace(memory.RIGHT, tokens=lambda slots, every: every[slots >= size]), spec, k, v, cell, batch)


STATE = [
    kernel("gumbel_by_log1p", "sample", "another formula", partial(sampling.draw, replace(sampling.RIGHT, noise=_race))),
    kernel("exponential_race", "sample", "another formula", quiet(_exponential_race)),
    kernel("logprobs_in_float32", "sample", "single precision", quiet(_float32_logprobs)),
    kernel("by_offsets", "write_kv", "another loop", partial(memory.write, memory.RIGHT)),
    kernel("padding_left_out", "write_kv", "block 0 is nobody's", _padding_left_out),
]

LEGAL: Sequence[Variant] = (*ATTENTION, *PRODUCTS, *gated.LEGAL, *quantized.LEGAL, *ROWS, *STATE, *parallel.LEGAL)
