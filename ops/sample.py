"""sample: from logits to tokens. Penalties, bias, mask, temperature, top-k, top-p, min-p, then the Gumbel maximum."""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .spec import Abstract, Dim, Spec, expect, spec, wide
from .threefry import uniforms
from .tolerance import STATISTICAL

Array = np.ndarray[Any, Any]


class Sampling(NamedTuple):
    """How each of the step's samples is drawn. [samples] each; the edit arrays are [edits], the mask is [samples, words]."""

    top_k: Any
    """Tokens kept; 0 or less: all."""
    seed_low: Any
    seed_high: Any
    """The request's seed: two words, as int32 bits."""
    index: Any
    """Which of a request's n samples this is."""
    position: Any
    """The position that the drawn token will have."""
    edit_sample: Any
    edit_token: Any
    """The logit to edit. A pair occurs once; padding edits add 0 to sample 0, token 0."""
    edit_seen: Any
    """1 where the token stands in the prompt or the output: the repetition penalty applies."""
    edit_count: Any
    """How often it stands in the output: presence and frequency penalties apply."""
    mask: Any
    """Bit t % 32 of word t // 32 says whether token t may be drawn; no words: every token may. Each sample keeps at least one."""
    temperature: Any
    """0: greedy."""
    top_p: Any
    min_p: Any
    repetition: Any
    presence: Any
    frequency: Any
    edit_bias: Any
    """Added last; -inf forbids the token."""


class Sampled(NamedTuple):
    """What a step answers. Log-probabilities are those of the unedited logits; None where none were asked for."""

    tokens: Any
    """[samples] int32."""
    logprob: Any = None
    """[samples] float32, of the drawn token."""
    top_tokens: Any = None
    """[samples, logprobs] int32, best first, ties to the lowest id."""
    top_logprobs: Any = None
    """[samples, logprobs] float32."""


@spec
class Sample(Spec):
    """`ops.sample(spec, logits [samples, vocab] float32, sampling, batch, state) -> Sampled`.

    Also writes the tokens to `state.last_token[batch.sample_slot]`. A token's random number depends on (seed, index,
    position, token id) alone: no neighbour, no batch and no platform changes it. Ties go to the lowest id.
    """

    op = "sample"
    tolerance = STATISTICAL

    vocab: Dim

    def infer(self, logits: Abstract, sampling: Sampling, batch: Any, state: Any) -> Sampled:
        expect(self.op, "logits", logits, (self.vocab.size,), "float32")
        samples = logits.shape[:1]
        return Sampled(Abstract(samples, "int32"))

    def reference(self, logits: Any, sampling: Sampling, batch: Any, state: Any) -> Sampled:
        tokens = draw(edited(wide(logits), sampling), sampling).astype(np.int32)
        state.last_token[batch.sample_slot] = tokens
        return Sampled(tokens, *logprobs(wide(logits), tokens, batch.shape.logprobs))


def edited(logits: Array, sampling: Sampling) -> Array:
    """[samples, vocab]: penalties (Keskar et al. 2019 for repetition), then biases, on the pairs that the edits name; then the mask.

    Each edited logit is computed in float64 and rounded to float32 once: whether two of them tie is part of the definition.
    """
    return masked(_edited(logits, sampling), np.asarray(sampling.mask))


def _edited(logits: Array, sampling: Sampling) -> Array:
    seen, count, bias = np.asarray(sampling.edit_seen) > 0, np.asarray(sampling.edit_count), wide(sampling.edit_bias)
    real = seen | (count > 0) | (bias != 0)
    if not real.any():
        return logits
    rows, tokens = (np.asarray(places)[real] for places in (sampling.edit_sample, sampling.edit_token))
    repetition, presence, frequency = (wide(one)[rows] for one in (sampling.repetition, sampling.presence, sampling.frequency))
    old = wide(logits[rows, tokens])
    factor = np.where(seen[real], repetition, 1.0)
    penalty = frequency * count[real] + presence * (count[real] > 0)
    changed = logits.copy()
    changed[rows, tokens] = (np.where(old > 0, old / factor, old * factor) - penalty + bias[real]).astype(np.float32)
    return changed


def masked(logits: Array, mask: Array) -> Array:
    """[samples, vocab] with -inf for each token whose bit in mask [samples, words] is 0."""
    limited = np.flatnonzero((mask != -1).any(axis=-1))
    if not len(limited):
        return logits
    bits = np.unpackbits(np.ascontiguousarray(mask[limited], "<i4").view(np.uint8), axis=-1, count=logits.shape[-1], bitorder="little")
    changed = logits.copy()
    changed[limited] = np.where(bits, changed[limited], -np.inf)
    return changed


def mask_words(vocab: int) -> int:
    """int32 words that hold a bit for each token."""
    return -(-vocab // 32)


def draw(logits: Array, sampling: Sampling) -> Array:
    """[samples] token ids: the greedy choice where temperature is 0, otherwise the Gumbel maximum over the kept tokens."""
    temperature = wide(sampling.temperature)
    tokens = np.argmax(logits, axis=-1)
    for row in np.flatnonzero(temperature > 0):
        scores = kept(logits[row] / temperature[row], int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row]))
        tokens[row] = np.argmax(scores - np.log(-np.log(row_uniforms(sampling, row, len(scores)))))
    return tokens


def row_uniforms(sampling: Sampling, row: Any, vocab: int) -> Array:
    """[vocab] float64: the random numbers of one sample."""
    words = (sampling.seed_low, sampling.seed_high, sampling.index, sampling.position)
    low, high, index, position = (np.asarray(word)[row : row + 1] for word in words)
    return wide(uniforms(low, high, index, position, vocab)[0])


def kept(scores: Array, top_k: int, top_p: float, min_p: float) -> Array:
    """[vocab] scores with -inf for what top-k, then top-p, then min-p drop. Ties are kept from the lowest id on."""
    if top_k <= 0 and top_p >= 1 and min_p <= 0:
        return scores
    order = np.argsort(-scores, kind="stable")
    if 0 < top_k < len(order):
        order = order[:top_k]
    ranked = np.exp(scores[order] - scores[order[0]])
    probabilities = ranked / ranked.sum()
    if top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        order = order[: max(1, int(np.searchsorted(before, top_p, side="left")))]
    order = order[ranked[: len(order)] >= min_p]
    limited = np.full_like(scores, -np.inf)
    limited[order] = scores[order]
    return limited


def logprobs(logits: Array, tokens: Array, count: int) -> tuple[Array | None, Array | None, Array | None]:
    """(of the tokens [samples], the `count` best ids and values [samples, count]); Nones where `count` is -1."""
    if count < 0:
        return None, None, None
    peak = logits.max(axis=-1, keepdims=True)
    normal = (logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))).astype(np.float32)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    chosen = np.take_along_axis(normal, tokens[:, None].astype(np.int64), axis=-1)[:, 0]
    return chosen, best.astype(np.int32), np.take_along_axis(normal, best, axis=-1)
