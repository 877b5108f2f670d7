"""From a plan to a step: rows packed into one buffer, padded to the platform's shapes, compiled once per shape, submitted."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InferplaneError
from ..ops import BatchShape, Packed, StateGroup, empty
from ..platforms.contract import Buckets, HostArrays, Pending
from .edits import Edits, edits, mask
from .loader import Loaded
from .localize import joined_blocks, local_blocks, split_blocks
from .parallel.messages import Write
from .parallel.peers import Peers
from .prompt_scores import forced, scores
from .request import Key
from .scheduler.plan import RowPlan, StepPlan

Drawn = Callable[[Key], Sequence[int]]
"""The tokens drawn so far for one sequence."""


class Runner:
    """Owns the state on the device and the compiled steps. Steps run in the order of submission."""

    def __init__(self, loaded: Loaded, *, blocks: Sequence[int], slots: int, peers: Peers | None = None) -> None:
        """blocks: per state group, the null block included. slots: sequences that run at once.

        peers: the other devices of this model; every step is theirs, too.
        """
        self.loaded = loaded
        self.platform = loaded.platform
        self.peers = peers
        self.state = self.platform.allocate(loaded.states, blocks, slots)
        self._compiled: dict[BatchShape, Any] = {}

    def batch(self, plan: StepPlan, drawn: Drawn) -> Packed:
        samples = [plan.rows[i] for i in plan.samples]
        changes = [edits(row, drawn) for row in samples]
        ends = np.cumsum([row.count for row in plan.rows])
        masks = [mask(row, drawn) for row in samples]
        wanted = max((self._logprobs(row.request.params.logprobs) for row in samples), default=-1)
        places = [int(ends[i]) - 1 for i in plan.samples]
        for one in scores(plan):
            row, change = forced(plan.rows[0], one.token)
            samples.append(row)
            changes.append(change)
            masks.append(None)
            places.append(one.place)
            wanted = max(wanted, self._logprobs(one.request.params.prompt_logprobs))
        return pack(
            plan.rows, self.loaded.model.states, self.platform.capabilities.buckets,
            sample=places, sampled=samples, edits=changes, masks=masks, logprobs=wanted,
        )

    def submit(self, plan: StepPlan, drawn: Drawn) -> Pending:
        """Starts the step; its result is a `Sampled` with one entry per `plan.samples`, then per `scores(plan)`, padding behind them."""
        packed = self.batch(plan, drawn)
        return self.start(packed) if self.peers is None else self.peers.start(packed, self.start)

    def warm(self, shape: BatchShape) -> None:
        """Compile the step of a shape, and run it on null rows."""
        packed, _, _ = empty(shape)
        (self.start(packed) if self.peers is None else self.peers.start(packed, self.start)).result()

    def start(self, packed: Packed) -> Pending:
        return self.platform.submit(self._step(packed.shape), self.loaded.weights, self.state, packed)

    def read_blocks(self, group: int, blocks: Sequence[int]) -> HostArrays:
        """Blocks of one group in canonical form, from all devices."""
        ours = self.platform.read_blocks(self.state, group, blocks)
        mesh = self.loaded.resolution.mesh
        if not mesh.ways:
            return ours
        parts = split_blocks(ours, mesh.size) if self.peers is None else [ours, *self.peers.read(group, blocks)]
        return joined_blocks(parts, self.loaded.model.states[group], mesh)

    def write_blocks(self, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        whole, mesh = self.loaded.model.states[group], self.loaded.resolution.mesh
        ours, *others = [local_blocks(arrays, whole, replace(mesh, rank=rank)) for rank in range(mesh.size)]
        if self.peers is not None:
            self.peers.tell([Write(group, tuple(blocks), part) for part in others])
        elif others:
            ours = {name: np.concatenate([part[name] for part in (ours, *others)], axis=1) for name in ours}
        self.platform.write_blocks(self.state, group, blocks, ours)

    def watch(self, notify: Callable[[InferplaneError], None]) -> None:
        """notify: called from any thread when a device is lost."""
        if self.peers:
            self.peers.watch(notify)

    @property
    def failure(self) -> InferplaneError | None:
        """Why no step can ever run again; None: they can."""
        return self.peers.failure if self.peers else None

    def close(self) -> None:
        if self.peers:
            self.peers.close()
        self.platform.close()

    def _logprobs(self, asked: int | None) -> int:
        """How many log-probabilities were asked for, as `BatchShape.logprobs` counts them."""
        if asked is None:
            return -1
        vocab = self.loaded.model.vocab_size
        return vocab if asked == -1 else min(asked, vocab)

    def _step(self, shape: BatchShape) -> Any:
        if self.platform.capabilities.buckets is None:
            return self.loaded.compiled(shape)
        if shape not in self._compiled:
            self._compiled[shape] = self.loaded.compiled(shape)
        return self._compiled[shape]


def pack(
    rows: Sequence[RowPlan],
    groups: Sequence[StateGroup],
    buckets: Buckets | None,
    *,
    sample: Sequence[int],
    sampled: Sequence[RowPlan] = (),
    edits: Sequence[Edits | None] = (),
    masks: Sequence[np.ndarray[Any, Any] | None] = (),
    logprobs: int = -1,
) -> Packed:
    """Fill the buffers of one step.

    sample: tokens whose hidden state goes to the head. sampled: the row that each is drawn for (empty: nothing is drawn).
    edits, masks: of each sample.
    Padding rows are empty, and padding tokens go to null block 0 of a padding row where there is one.
    """
    counts = [row.count for row in rows]
    total = sum(counts)
    shape = BatchShape(
        tokens=total, rows=len(rows), samples=len(sample),
        blocks=tuple(max(len(row.tables[g]) for row in rows) for g in range(len(groups))),
        longest_query=max(counts), edits=sum(len(one.tokens) for one in edits if one),
        mask_words=max((len(one) for one in masks if one is not None), default=0), logprobs=logprobs,
    )
    shape = buckets.pad(shape) if buckets else shape
    packed, batch, sampling = empty(shape)
    R = len(rows)

    batch.starts[1 : R + 1] = np.cumsum(counts)
    batch.starts[R + 1 :] = total
    batch.lengths[:R] = [row.length for row in rows]
    batch.slot[:R] = [row.slot for row in rows]
    batch.fresh[:R] = [row.fresh for row in rows]
    batch.row[:total] = np.repeat(np.arange(R), counts)
    batch.row[total:] = min(R, shape.rows - 1)
    batch.positions[:total] = np.arange(total) + np.repeat([row.start for row in rows] - batch.starts[:R], counts)
    batch.tokens[:total] = np.concatenate([row.tokens for row in rows])
    batch.source[:] = -1
    for start, row in zip(batch.starts[:R], rows, strict=True):
        if row.pending:
            batch.source[start] = row.slot
    for g, group in enumerate(groups):
        table = batch.groups[g].table
        for r, row in enumerate(rows):
            table[r, : len(row.tables[g])] = row.tables[g]
        if group.kind == "paged":
            block, offset = np.divmod(batch.positions[:total], group.block_tokens)
            batch.groups[g].slots[:total] = table[batch.row[:total], block] * group.block_tokens + offset

    batch.sample[: len(sample)] = sample
    for i, row in enumerate(sampled):
        params, seed = row.request.params, row.request.seed
        batch.sample_slot[i] = row.slot
        sampling.top_k[i], sampling.top_p[i], sampling.min_p[i] = params.top_k, params.top_p, params.min_p
        sampling.temperature[i] = params.temperature
        sampling.repetition[i] = params.repetition_penalty
        sampling.presence[i], sampling.frequency[i] = params.presence_penalty, params.frequency_penalty
        sampling.seed_low[i], sampling.seed_high[i] = _word(seed), _word(seed >> 32)
        sampling.index[i], sampling.position[i] = row.request.sample_index, row.position
    first = 0
    for i, one in enumerate(edits):
        if one:
            place = slice(first, first := first + len(one.tokens))
            sampling.edit_sample[place], sampling.edit_token[place] = i, one.tokens
            sampling.edit_seen[place], sampling.edit_count[place], sampling.edit_bias[place] = one.seen, one.drawn, one.bias
    sampling.mask[:] = ALL
    for i, allowed in enumerate(masks):
        if allowed is not None:
            sampling.mask[i] = allowed
    return packed


ALL = -1
"""A word of a mask that forbids nothing."""


def _word(bits: int) -> int:
    """The low 32 bits, as the int32 that has them."""
    return (bits & 0xFFFFFFFF) - ((bits & 0x80000000) << 1)
