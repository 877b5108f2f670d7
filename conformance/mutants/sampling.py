"""Planted bugs of sample: penalties, filters, random bits, ties, and what is told and kept."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from ...ops import Sample, Sampled, Sampling
from ...ops.sample import edited, kept, logprobs, row_uniforms
from ...ops.threefry import threefry
from .plant import Run, Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


def noise(sampling: Sampling, row: int, vocab: int) -> Array:
    """[vocab] Gumbel numbers of one row."""
    return np.asarray(-np.log(-np.log(row_uniforms(sampling, row, vocab))))


def keep(scores: Array, sampling: Sampling, row: int) -> Array:
    return kept(scores, int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row]))


def store(state: Any, batch: Any, tokens: Array) -> None:
    state.last_token[batch.sample_slot] = tokens


@dataclass(frozen=True)
class Drawer:
    """Each decision of the sampler; the defaults are right."""

    edit: Callable[[Array, Sampling], Array] = edited
    temperature: Callable[[Array, float], Array] = lambda logits, temperature: logits / temperature
    keep: Callable[[Array, Sampling, int], Array] = keep
    noise: Callable[[Sampling, int, int], Array] = noise
    pick: Callable[[Array], Any] = np.argmax
    greedy: Callable[[Sampling, int], bool] = lambda sampling, row: sampling.temperature[row] == 0
    told: Callable[[Array, Array], Array] = lambda logits, edited: logits
    """Which logits the log-probabilities are of."""
    store: Callable[[Any, Any, Array], None] = store


RIGHT = Drawer()


def draw(way: Drawer, spec: Sample, logits: Array, sampling: Sampling, batch: Any, state: Any) -> Sampled:
    """`Sample`'s own arguments."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(all="ignore"):
        changed = way.edit(wide, sampling)
        tokens = np.zeros(len(wide), np.int32)
        for row in range(len(wide)):
            scores = changed[row]
            if not way.greedy(sampling, row):
                scores = way.keep(way.temperature(scores, float(sampling.temperature[row])), sampling, row)
                scores = scores + way.noise(sampling, row, len(scores))
            tokens[row] = way.pick(scores)
        way.store(state, batch, tokens)
        return Sampled(tokens, *logprobs(way.told(wide, changed), tokens, batch.shape.logprobs))


def drawer(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "sample", source, partial(draw, replace(RIGHT, **wrong)))


def seeded(name: str, source: str, change: Callable[[Sampling], Sampling]) -> Variant:
    """The right sampler with other sampling arrays."""
    return kernel(name, "sample", source, lambda spec, logits, sampling, *rest: draw(RIGHT, spec, logits, change(sampling), *rest))


# Filters.

def filters(top_k: Callable[[int], int] = int, top_p: str = "left", order: str = "kpm",
            ties: bool = False) -> Callable[[Array, Sampling, int], Array]:
    """top-k, top-p and min-p in any order. top_p: "left" keeps what starts below p, "right" also what starts at it, "short" only
    what ends within it. ties: all that equal the last kept are kept too."""
    def run(scores: Array, sampling: Sampling, row: int) -> Array:
        ranks = np.argsort(-scores, kind="stable")
        for step in order:
            ranked = np.exp(scores[ranks] - scores[ranks[0]])
            shares = ranked / ranked.sum()
            ends = np.cumsum(shares)
            if step == "k" and 0 < (limit := top_k(int(sampling.top_k[row]))) < len(ranks):
                last = scores[ranks[limit - 1]]
                ranks = ranks[scores[ranks] >= last] if ties else ranks[:limit]
            elif step == "p" and (p := float(sampling.top_p[row])) < 1:
                side: Any = "right" if top_p == "short" else top_p
                number = np.searchsorted(ends if top_p == "short" else ends - shares, p, side=side)
                ranks = ranks[: max(1, int(number))]
            elif step == "m":
                ranks = ranks[ranked >= float(sampling.min_p[row])]
        limited = np.full_like(scores, -np.inf)
        limited[ranks] = scores[ranks]
        return limited

    return run


def _min_p_of_the_probability(scores: Array, sampling: Sampling, row: int) -> Array:
    limited = kept(scores, int(sampling.top_k[row]), float(sampling.top_p[row]), 0.0)
    shares = np.exp(limited - limited.max())
    allowed = shares / shares.sum() >= sampling.min_p[row]
    allowed[np.argmax(limited)] = True
    return np.where(allowed, limited, -np.inf)


def _p_before_k(scores: Array, sampling: Sampling, row: int) -> Array:
    return filters(order="pkm")(scores, sampling, row)


def _first_row(scores: Array, sampling: Sampling, row: int) -> Array:
    return keep(scores, sampling, 0)


# Penalties and biases.

def _edits(order: Callable[[Array, Array, Sampling, Array], Array]) -> Callable[[Array, Sampling], Array]:
    """order(old logits of the edits, repetition [edits], sampling, rows) -> new ones."""
    def run(logits: Array, sampling: Sampling) -> Array:
        rows, tokens = sampling.edit_sample, sampling.edit_token
        if not len(rows):
            return logits
        repetition = np.where(np.asarray(sampling.edit_seen) > 0, sampling.repetition[rows], 1.0)
        changed = logits.copy()
        changed[rows, tokens] = order(logits[rows, tokens], repetition, sampling, rows)
        return changed

    return run


def _counts(sampling: Sampling, rows: Array) -> Array:
    return sampling.frequency[rows] * sampling.edit_count + sampling.presence[rows] * (sampling.edit_count > 0)


def _repeated(old: Array, repetition: Array) -> Array:
    return np.where(old > 0, old / repetition, old * repetition)


def _penalties(name: str, order: Callable[[Array, Array, Sampling, Array], Array]) -> Variant:
    return drawer(name, OURS, edit=_edits(order))


PENALTIES = [
    _penalties("repetition_divides_always", lambda old, r, s, rows: old / r - _counts(s, rows) + s.edit_bias),
    _penalties("repetition_after_the_others", lambda old, r, s, rows: _repeated(old - _counts(s, rows), r) + s.edit_bias),
    _penalties("bias_before_repetition", lambda old, r, s, rows: _repeated(old + s.edit_bias, r) - _counts(s, rows)),
    _penalties("bias_ignored", lambda old, r, s, rows: _repeated(old, r) - _counts(s, rows)),
    _penalties("bias_twice", lambda old, r, s, rows: _repeated(old, r) - _counts(s, rows) + 2 * s.edit_bias),
    _penalties("presence_for_unseen",
               lambda old, r, s, rows: _repeated(old, r) - s.frequency[rows] * s.edit_count - s.presence[rows] + s.edit_bias),
    _penalties("presence_counted",
               lambda old, r, s, rows: _repeated(old, r) - (s.frequency[rows] + s.presence[rows]) * s.edit_count + s.edit_bias),
    _penalties("frequency_ignored", lambda old, r, s, rows: _repeated(old, r) - s.presence[rows] * (s.edit_count > 0) + s.edit_bias),
    _penalties("frequency_of_the_first_row", lambda old, r, s, rows: _repeated(old, r) - _counts(s, rows * 0) + s.edit_bias),
    _penalties("forbidden_by_minus_ten", lambda old, r, s, rows: _repeated(old, r) - _counts(s, rows) + np.maximum(s.edit_bias, -10)),
    drawer("penalties_after_temperature", OURS,
           edit=lambda logits, s: edited(logits / np.where(s.temperature > 0, s.temperature, 1)[:, None], s),
           temperature=lambda logits, temperature: logits, told=lambda logits, changed: logits),
]

FILTERS = [
    drawer("top_k_zero_is_one", "tpu-inference #1386", keep=filters(top_k=lambda k: max(1, k))),
    drawer("top_k_keeps_ties", "vLLM #41598", keep=filters(ties=True)),
    drawer("top_k_one_short", OURS, keep=filters(top_k=lambda k: max(1, k - 1) if k > 0 else k)),
    drawer("top_k_one_more", OURS, keep=filters(top_k=lambda k: k + 1 if k > 0 else k)),
    drawer("top_p_also_what_starts_at_it", "< for <=", keep=filters(top_p="right")),
    drawer("top_p_only_what_ends_within", OURS, keep=filters(top_p="short")),
    drawer("top_p_before_top_k", OURS, keep=_p_before_k),
    drawer("min_p_before_top_p", OURS, keep=filters(order="kmp")),
    drawer("min_p_of_the_probability", OURS, keep=_min_p_of_the_probability),
    drawer("top_p_ignored", OURS, keep=filters(order="km")),
    drawer("min_p_ignored", OURS, keep=filters(order="kp")),
    drawer("filters_of_the_first_row", OURS, keep=_first_row),
    drawer("filters_before_temperature", OURS, temperature=lambda logits, t: logits,
           keep=lambda s, sampling, row: keep(s, sampling, row) / sampling.temperature[row]),
    drawer("temperature_multiplies", OURS, temperature=lambda logits, t: logits * t),
]


# Random bits.

def _beside_filters(sampling: Sampling, row: int, vocab: int) -> Array:
    """A row without filters draws from the sorted order when a neighbour filters."""
    filtering = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    made = noise(sampling, row, vocab)
    return np.roll(made, 1) if filtering.any() and not filtering[row] else made


def _by_row(sampling: Sampling, row: int, vocab: int) -> Array:
    index = np.asarray(sampling.index).copy()
    index[row] += row
    return noise(sampling._replace(index=index), row, vocab)


def _one_stream(sampling: Sampling, row: int, vocab: int) -> Array:
    """Row after row draws from the seed of the first."""
    numbers = [noise(sampling, 0, vocab), *(np.roll(noise(sampling, 0, vocab), place) for place in range(1, row + 1))]
    return numbers[row]


def _one_counter_each(sampling: Sampling, row: int, vocab: int) -> Array:
    """A counter per token instead of one per pair."""
    words = [np.asarray(word)[row : row + 1] for word in (sampling.seed_low, sampling.seed_high, sampling.index, sampling.position)]
    low, high = threefry((words[0], words[1]), (words[2], words[3]))
    bits, _ = threefry((low, high), (np.arange(vocab, dtype=np.uint32), np.uint32(0)))
    uniform = ((bits >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    return -np.log(-np.log(uniform.astype(np.float64)))


def _clock() -> Run:
    """The seed is moved by a counter of calls."""
    calls = count()
    return lambda spec, logits, sampling, *rest: draw(
        RIGHT, spec, logits, sampling._replace(index=sampling.index + np.int32(next(calls))), *rest)


def _stale_slot(state: Any, batch: Any, tokens: Array) -> None:
    state.last_token[np.roll(batch.sample_slot, 1)] = tokens


NOISE = [
    drawer("seeded_row_beside_filters", "sglang #35697", noise=_beside_filters),
    drawer("bits_keyed_by_row", OURS, noise=_by_row),
    drawer("one_stream_for_the_batch", OURS, noise=_one_stream),
    drawer("a_counter_per_token", OURS, noise=_one_counter_each),
    drawer("no_noise", OURS, noise=lambda sampling, row, vocab: np.zeros(vocab)),
    seeded("position_one_late", OURS, lambda s: s._replace(position=s.position + 1)),
    seeded("position_in_16_bits", OURS, lambda s: s._replace(position=s.position & 0xFFFF)),
    seeded("position_ignored", OURS, lambda s: s._replace(position=s.position * 0)),
    seeded("sample_index_ignored", OURS, lambda s: s._replace(index=s.index * 0)),
    seeded("high_word_of_the_seed_ignored", OURS, lambda s: s._replace(seed_high=s.seed_high * 0)),
    seeded("words_of_the_seed_swapped", OURS, lambda s: s._replace(seed_low=s.seed_high, seed_high=s.seed_low)),
    seeded("sign_of_the_seed_lost", OURS, lambda s: s._replace(seed_low=s.seed_low & 0x7FFFFFFF)),
    stateful("seed_moves_with_calls", "sample", OURS, _clock),
]

CHOICES = [
    drawer("ties_to_the_highest_id", OURS, pick=lambda scores: len(scores) - 1 - np.argmax(scores[::-1])),
    drawer("temperature_zero_draws", OURS, greedy=lambda sampling, row: False, temperature=lambda logits, t: logits / max(t, 1e-5)),
    drawer("one_greedy_row_makes_all_greedy", OURS, greedy=lambda sampling, row: bool((sampling.temperature == 0).any())),
    drawer("greedy_before_edits", OURS, edit=lambda logits, s: np.where((s.temperature == 0)[:, None], logits, edited(logits, s))),
    drawer("mask_ignored", OURS, edit=lambda logits, s: edited(logits, s._replace(mask=s.mask[:, :0]))),
    drawer("mask_of_the_first_row", OURS, edit=lambda logits, s: edited(logits, s._replace(mask=s.mask[np.zeros(len(s.mask), int)]))),
    drawer("mask_bits_in_another_order", OURS, edit=lambda logits, s: edited(logits, s._replace(mask=s.mask.byteswap()))),
    drawer("greedy_before_the_mask", OURS, edit=lambda logits, s: np.where(
        (s.temperature == 0)[:, None], edited(logits, s._replace(mask=s.mask[:, :0])), edited(logits, s))),
    drawer("last_token_of_the_vocabulary_never", OURS, pick=lambda scores: np.argmax(scores[: max(1, len(scores) - 1)])),
    drawer("logprobs_of_the_edited", OURS, told=lambda logits, changed: changed),
    drawer("last_token_not_kept", OURS, store=lambda state, batch, tokens: None),
    drawer("last_token_in_the_wrong_slot", "stale slot", store=_stale_slot),
    drawer("last_token_by_row", "stale slot",
           store=lambda state, batch, tokens: state.last_token.__setitem__(1 + np.arange(len(tokens)), tokens)),
    kernel("top_logprobs_unsorted", "sample", OURS, lambda *arguments: _reversed(draw(RIGHT, *arguments))),
    kernel("logprobs_not_normalized", "sample", OURS, lambda spec, logits, *rest: _raw(draw(RIGHT, spec, logits, *rest), logits)),
    kernel("tokens_in_64_bits", "sample", OURS,
           lambda *arguments: (lambda s: s._replace(tokens=s.tokens.astype(np.int64)))(draw(RIGHT, *arguments))),
]


def _reversed(sampled: Sampled) -> Sampled:
    if sampled.top_tokens is None:
        return sampled
    return sampled._replace(top_tokens=sampled.top_tokens[:, ::-1].copy(), top_logprobs=sampled.top_logprobs[:, ::-1].copy())


def _raw(sampled: Sampled, logits: Array) -> Sampled:
    return sampled if sampled.logprob is None else sampled._replace(logprob=logits[np.arange(len(logits)), sampled.tokens])


BUGS: Sequence[Variant] = (*PENALTIES, *FILTERS, *NOISE, *CHOICES)
