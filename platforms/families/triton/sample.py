"""sample: from logits to tokens in a few launches, none of which sorts the vocabulary or waits for the device."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....ops import Batch, Kernel, Sample, Sampled, Sampling, always
from . import sample_kernel
from .device import Device
from .rows import power_of_two

RANKED = 32
"""Best tokens that are found one after the other; more of them are told from a sort of the row."""


def kernels(device: Device) -> Sequence[Kernel]:
    """A draw depends on its own row alone, and to the bit: the tiles depend on the vocabulary."""
    return [Kernel("sample", "triton.sample", always, partial(sample, device), batch_invariant=True)]


def sample(device: Device, spec: Sample, logits: Tensor, sampling: Sampling, batch: Batch, state: Any) -> Sampled:
    """logits [samples, vocab] float32."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    changed = edited(device, logits, sampling)
    samples, vocab = logits.shape
    config = device.configured("draw", vocab=vocab)
    parts = -(-vocab // config.meta["BLOCK"])
    limits = _limits(device, changed, sampling)
    scores = torch.empty(samples, parts, dtype=torch.float32, device=logits.device)
    ids = torch.empty(samples, parts, dtype=torch.int32, device=logits.device)
    device.launch(
        sample_kernel.draw, (samples, parts), scores, ids, changed, *limits, sampling.temperature, sampling.min_p,
        sampling.seed_low, sampling.seed_high, sampling.index, sampling.position, vocab, changed.stride(0), parts, config=config,
    )
    tokens = torch.empty(samples, dtype=torch.int32, device=logits.device)
    device.launch(sample_kernel.choose, (samples,), tokens, state.last_token, scores, ids, batch.sample_slot, parts,
                  PARTS=power_of_two(parts), config=device.configured("choose"))
    return Sampled(tokens, *_logprobs(device, logits, tokens, batch.shape.logprobs))


def edited(device: Device, logits: Tensor, sampling: Sampling) -> Tensor:
    """[samples, vocab] after penalties, biases and mask; the logits themselves where nothing asks for any."""
    rows, words = sampling.edit_sample, sampling.mask.shape[1]
    if not len(rows) and not words:
        return logits
    changed = logits.clone(memory_format=torch.contiguous_format)
    if len(rows):
        _edit(device, changed, sampling)
    if words:
        samples, vocab = logits.shape
        config = device.configured("draw", vocab=vocab)
        parts = -(-vocab // config.meta["BLOCK"])
        device.launch(sample_kernel.forbid, (samples, parts), changed, sampling.mask, vocab, words, config=config)
    return changed


def _edit(device: Device, changed: Tensor, sampling: Sampling) -> None:
    """Penalties and biases, in place."""
    rows, config = sampling.edit_sample, device.configured("edit")
    device.launch(
        sample_kernel.edit, (-(-len(rows) // config.meta["BLOCK"]),), changed, rows, sampling.edit_token, sampling.edit_seen,
        sampling.edit_count, sampling.edit_bias, sampling.repetition, sampling.presence, sampling.frequency, len(rows), changed.shape[1],
        config=config,
    )


def _limits(device: Device, logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """(lowest keys as int32 bits, last ids, highest scores) [samples]."""
    samples, vocab = logits.shape
    keys, lasts = torch.empty(2, samples, dtype=torch.int32, device=logits.device)
    peaks = torch.empty(samples, dtype=torch.float32, device=logits.device)
    device.launch(
        sample_kernel.limit, (samples,), keys, lasts, peaks, logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
        vocab, logits.stride(0), config=device.configured("limit", vocab=vocab),
    )
    return keys, lasts, peaks


def _logprobs(device: Device, logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(of the tokens [samples], the `count` best ids and values [samples, count]); Nones where `count` is -1."""
    if count < 0:
        return None, None, None
    samples, vocab = logits.shape
    peaks, sums = torch.empty(2, samples, 1, dtype=torch.float32, device=logits.device)
    device.launch(sample_kernel.normal, (samples,), peaks, sums, logits, vocab, logits.stride(0),
                  config=device.configured("rank", vocab=vocab))
    best = _best(device, logits, count)
    chosen, others = ((logits.gather(-1, ids.long()) - peaks) - sums for ids in (tokens[:, None], best))
    return chosen[:, 0], best, others


def _best(device: Device, logits: Tensor, count: int) -> Tensor:
    """[samples, count] int32, best first, ties to the lowest id."""
    samples, vocab = logits.shape
    if count > RANKED:
        return torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :count].int()
    best = torch.empty(samples, count, dtype=torch.int32, device=logits.device)
    device.launch(sample_kernel.rank, (samples,), best, logits, vocab, logits.stride(0), count,
                  config=device.configured("rank", vocab=vocab))
    return best
