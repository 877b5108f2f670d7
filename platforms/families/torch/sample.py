"""derive, and sample: edits, filters, the Gumbel maximum, log-probabilities. Nothing here waits for the device."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....ops import Batch, Derive, Sample, Sampled, Sampling
from .order import largest_first
from .threefry import uniforms


def derive(spec: Derive, batch: Batch, state: Any) -> Batch:
    drawn = state.last_token[batch.source.clamp(min=0)]
    return batch._replace(tokens=torch.where(batch.source < 0, batch.tokens, drawn))


def sample(spec: Sample, logits: Tensor, sampling: Sampling, batch: Batch, state: Any) -> Sampled:
    changed = edited(logits, sampling)
    words = (sampling.seed_low, sampling.seed_high, sampling.index, sampling.position)
    gumbel = -torch.log(-torch.log(uniforms(*words, vocab=logits.shape[-1])))
    warm = sampling.temperature > 0
    scores = changed / torch.where(warm, sampling.temperature, 1)[:, None]
    drawn = (kept(scores, sampling) + gumbel).argmax(-1)
    tokens = torch.where(warm, drawn, changed.argmax(-1)).int()
    state.last_token[batch.sample_slot] = tokens
    return Sampled(tokens, *_logprobs(logits, tokens, batch.shape.logprobs))


def edited(logits: Tensor, sampling: Sampling) -> Tensor:
    """[samples, vocab]: repetition, frequency and presence penalties, then biases, on the pairs that the edits name; then the mask."""
    changed = _edited(logits, sampling)
    return masked(changed, sampling.mask) if sampling.mask.shape[1] else changed


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """[samples, vocab] with -inf for each token whose bit in mask [samples, words] is 0.

    Nothing negative is shifted: torch_xla would divide and round towards zero.
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    words, place = mask[:, ids >> 5], ids & 31
    allowed = ((words & 0x7FFFFFFF) >> place & 1).bool() | ((place == 31) & (words < 0))
    return torch.where(allowed, logits, -torch.inf)


def _edited(logits: Tensor, sampling: Sampling) -> Tensor:
    rows, tokens = sampling.edit_sample, sampling.edit_token
    if not len(rows):
        return logits
    old = logits[rows, tokens]
    repetition = torch.where(sampling.edit_seen > 0, sampling.repetition[rows], 1)
    count = sampling.edit_count
    new = torch.where(old > 0, old / repetition, old * repetition)
    new = new - sampling.frequency[rows] * count - sampling.presence[rows] * (count > 0) + sampling.edit_bias
    change = torch.where(new == old, 0, new - old)
    return logits.index_put((rows, tokens), change, accumulate=True)


def kept(scores: Tensor, sampling: Sampling) -> Tensor:
    """[samples, vocab] scores with -inf for what top-k, then top-p, then min-p drop; ties are kept from the lowest id on."""
    top_k, top_p, min_p = (one[:, None] for one in (sampling.top_k, sampling.top_p, sampling.min_p))
    ranked, order = largest_first(scores)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = (top_k <= 0) | (rank < top_k)
    relative = torch.exp(ranked - ranked[:, :1])
    among = torch.where(keep, relative, 0)
    before = (among.cumsum(-1) - among) / among.sum(-1, keepdim=True)
    keep &= (top_p >= 1) | (before < top_p) | (rank == 0)
    keep &= (min_p <= 0) | (relative >= min_p)
    limited = torch.where(keep, ranked, -torch.inf)
    return torch.empty_like(scores).scatter_(-1, order, limited)


def _logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(of the tokens [samples], the `count` best ids and values [samples, count]); Nones where `count` is -1.

    `torch.log_softmax` sums a large vocabulary less exactly than `sum`.
    """
    if count < 0:
        return None, None, None
    below = logits - logits.amax(-1, keepdim=True)
    normal = below - below.exp().sum(-1, keepdim=True).log()
    best = largest_first(logits)[1][:, :count]
    return normal.gather(-1, tokens.long()[:, None])[:, 0], best.int(), normal.gather(-1, best)
