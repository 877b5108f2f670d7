"""derive, and sample: edits, filters, the Gumbel maximum, log-probabilities."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ....ops import Batch, Derive, Sample, Sampled, Sampling
from .threefry import uniforms

Array = jax.Array


def derive(spec: Derive, batch: Batch, state: Any) -> Batch:
    drawn = state.last_token[jnp.maximum(batch.source, 0)]
    return batch._replace(tokens=jnp.where(batch.source < 0, batch.tokens, drawn))


def sample(spec: Sample, logits: Array, sampling: Sampling, batch: Batch, state: Any) -> Sampled:
    """Rebinds `state.last_token`; the step that is compiled collects it."""
    changed = edited(logits, sampling)
    words = (sampling.seed_low, sampling.seed_high, sampling.index, sampling.position)
    gumbel = -jnp.log(-jnp.log(uniforms(*words, vocab=logits.shape[-1])))
    warm = sampling.temperature > 0
    scores = changed / jnp.where(warm, sampling.temperature, 1)[:, None]
    drawn = (kept(scores, sampling) + gumbel).argmax(-1)
    tokens = jnp.where(warm, drawn, changed.argmax(-1)).astype(jnp.int32)
    state.last_token = state.last_token.at[batch.sample_slot].set(tokens)
    return Sampled(tokens, *_logprobs(logits, tokens, batch.shape.logprobs))


def edited(logits: Array, sampling: Sampling) -> Array:
    """[samples, vocab]: repetition, frequency and presence penalties, then biases, on the pairs that the edits name; then the mask."""
    changed = _edited(logits, sampling)
    return masked(changed, sampling.mask) if sampling.mask.shape[1] else changed


def masked(logits: Array, mask: Array) -> Array:
    """[samples, vocab] with -inf for each token whose bit in mask [samples, words] is 0."""
    ids = jnp.arange(logits.shape[1])
    return jnp.where((mask[:, ids >> 5] >> (ids & 31) & 1) > 0, logits, -jnp.inf)


def _edited(logits: Array, sampling: Sampling) -> Array:
    rows, tokens = sampling.edit_sample, sampling.edit_token
    if not rows.shape[0]:
        return logits
    old = logits[rows, tokens]
    repetition = jnp.where(sampling.edit_seen > 0, sampling.repetition[rows], 1)
    count = sampling.edit_count
    new = jnp.where(old > 0, old / repetition, old * repetition)
    new = new - sampling.frequency[rows] * count - sampling.presence[rows] * (count > 0) + sampling.edit_bias
    return logits.at[rows, tokens].add(jnp.where(new == old, 0, new - old))


def kept(scores: Array, sampling: Sampling) -> Array:
    """[samples, vocab] scores with -inf for what top-k, then top-p, then min-p drop; ties are kept from the lowest id on."""
    top_k, top_p, min_p = (one[:, None] for one in (sampling.top_k, sampling.top_p, sampling.min_p))
    order = jnp.argsort(-scores, axis=-1, stable=True)
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    rank = jnp.arange(scores.shape[-1])
    keep = (top_k <= 0) | (rank < top_k)
    relative = jnp.exp(ranked - ranked[:, :1])
    among = jnp.where(keep, relative, 0)
    before = (among.cumsum(-1) - among) / among.sum(-1, keepdims=True)
    keep &= (top_p >= 1) | (before < top_p) | (rank == 0)
    keep &= (min_p <= 0) | (relative >= min_p)
    limited = jnp.where(keep, ranked, -jnp.inf)
    return jnp.put_along_axis(scores, order, limited, axis=-1, inplace=False)


def _logprobs(logits: Array, tokens: Array, count: int) -> tuple[Array | None, Array | None, Array | None]:
    """(of the tokens [samples], the `count` best ids and values [samples, count]); Nones where `count` is -1."""
    if count < 0:
        return None, None, None
    normal = jax.nn.log_softmax(logits, axis=-1)
    best = jnp.argsort(-logits, axis=-1, stable=True)[:, :count]
    chosen = jnp.take_along_axis(normal, tokens[:, None], axis=-1)[:, 0]
    return chosen, best.astype(jnp.int32), jnp.take_along_axis(normal, best, axis=-1)
