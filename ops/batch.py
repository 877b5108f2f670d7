"""A step's rows as int32 arrays, packed into one buffer: one copy to the device, then views."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .sample import Sampling


class GroupRows(NamedTuple):
    """What the rows of a step mean to one state group."""

    table: Any
    """[rows, blocks] block ids; entries behind a sliding window, and padding, are 0."""
    slots: Any
    """[tokens] where each new token's state goes: block * block_tokens + offset."""


class Batch(NamedTuple):
    """One step, as kernels see it. Rows are ragged: row r owns tokens starts[r] .. starts[r + 1] - 1."""

    tokens: Any
    """[tokens] token ids."""
    source: Any
    """[tokens] the row slot whose last sampled token is meant, or -1: `tokens` says it."""
    positions: Any
    """[tokens] position in its sequence."""
    row: Any
    """[tokens] the row it belongs to."""
    starts: Any
    """[rows + 1] first token of each row."""
    lengths: Any
    """[rows] tokens in the sequence after this step."""
    slot: Any
    """[rows] the row's persistent slot; 0 is null."""
    fresh: Any
    """[rows] 1 where the slot's recurrent state starts new."""
    adapter: Any
    """[rows] the row's adapter; 0 is none."""
    sample: Any
    """[samples] the token whose hidden state goes to the head."""
    sample_slot: Any
    """[samples] the slot that keeps the sampled token; 0 discards it."""
    groups: tuple[GroupRows, ...]
    """One per state group, in the model's order."""
    shape: BatchShape
    """The static part."""


@dataclass(frozen=True)
class BatchShape:
    """The static part of a batch: the key of every bucket, graph and compiled program."""

    tokens: int
    rows: int
    samples: int
    blocks: tuple[int, ...]
    """Table width of each state group."""
    longest_query: int
    edits: int = 0
    """Logit edits (penalties, biases) of all samples."""
    mask_words: int = 0
    """Words of each sample's mask; 0: no sample has one."""
    logprobs: int = -1
    """Best log-probabilities told per sample; 0: only the sampled token's; -1: none."""


class Packed(NamedTuple):
    """A batch and its sampling arrays on the host, ready for one copy."""

    shape: BatchShape
    integers: np.ndarray[Any, np.dtype[np.int32]]
    floats: np.ndarray[Any, np.dtype[np.float32]]


def empty(shape: BatchShape) -> tuple[Packed, Batch, Sampling]:
    """A zeroed buffer and writable views of it."""
    packed = Packed(shape, np.zeros(sum(_integers(shape)), np.int32), np.zeros(sum(_floats(shape)), np.float32))
    return packed, *unpack(shape, packed.integers, packed.floats)


def unpack(shape: BatchShape, integers: Any, floats: Any) -> tuple[Batch, Sampling]:
    """Views of the two buffers; slices and reshapes only, so that any framework's arrays will do."""
    take: Callable[[], Any] = _views(integers, _integers(shape)).__next__
    real: Callable[[], Any] = _views(floats, _floats(shape)).__next__
    batch = Batch(
        tokens=take(), source=take(), positions=take(), row=take(),
        starts=take(), lengths=take(), slot=take(), fresh=take(), adapter=take(),
        sample=take(), sample_slot=take(),
        groups=tuple(GroupRows(take().reshape(shape.rows, width), take()) for width in shape.blocks),
        shape=shape,
    )
    return batch, Sampling(
        top_k=take(), seed_low=take(), seed_high=take(), index=take(), position=take(),
        edit_sample=take(), edit_token=take(), edit_seen=take(), edit_count=take(),
        mask=take().reshape(shape.samples, shape.mask_words),
        temperature=real(), top_p=real(), min_p=real(),
        repetition=real(), presence=real(), frequency=real(), edit_bias=real(),
    )


def _integers(shape: BatchShape) -> list[int]:
    t, r, s, e = shape.tokens, shape.rows, shape.samples, shape.edits
    groups = [count for width in shape.blocks for count in (r * width, t)]
    return [t, t, t, t, r + 1, r, r, r, r, s, s, *groups, s, s, s, s, s, e, e, e, e, s * shape.mask_words]


def _floats(shape: BatchShape) -> list[int]:
    return [shape.samples] * 6 + [shape.edits]


def _views(buffer: Any, counts: list[int]) -> Iterator[Any]:
    start = 0
    for count in counts:
        yield buffer[start : start + count]
        start += count
