"""The scheduler's whole decision for one step, and what a step gave each request. Frozen data."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..kv.stats import KVReport
from ..request import Key, Request

FinishReason = Literal["stop", "length", "abort"]


class RowPlan(NamedTuple):
    """One sequence's share of a step: tokens `start` to `length` are computed.

    slot: 1 to max_num_seqs, the sequence's own while it runs.
    tokens [count] int32, read-only. pending: the one token is still being drawn by the step before; the device has it in
    last_token[slot], and `tokens` is a 0 in its place.
    sample: the row reaches the end of its tokens, so one is drawn; it will stand at `position`.
    tables: for each StateGroup [blocks] int32, read-only and never changed later; 0 behind a window; [0] if recurrent.
    fresh: the slot was another sequence's, or this one's before a preemption; its state starts new.
    """

    request: Request
    slot: int
    start: int
    count: int  # type: ignore[assignment]
    tokens: np.ndarray
    pending: bool
    sample: bool
    tables: tuple[np.ndarray, ...]
    fresh: bool

    @property
    def key(self) -> Key:
        return self.request.key

    @property
    def length(self) -> int:
        """The row's KV length after this step."""
        return self.start + self.count

    @property
    def position(self) -> int:
        """Where the drawn token will stand; the random numbers are keyed by it."""
        return self.start + self.count


@dataclass(frozen=True)
class StepPlan:
    """What one step computes. Plans must be submitted in the order of `number`, and none left out.

    rows: decodes first, then prefills. samples: indices into rows of those that draw a token. scored: of those whose prompt is judged.
    preempted: sequences that lost their blocks to this plan; they wait again and go on exactly.
    """

    number: int
    now: float
    rows: tuple[RowPlan, ...]
    samples: tuple[int, ...]
    token_count: int
    preempted: tuple[Key, ...] = ()
    scored: tuple[int, ...] = ()


class Update(NamedTuple):
    """What a step, an abort or a finish gave one sequence.

    index: the token's place among the drawn ones, from 0. reason: why it ended, or None.
    kv: where its blocks came from, and started: seconds, when its first step was planned; given when it ends.
    """

    request: Request
    token: int | None
    index: int  # type: ignore[assignment]
    reason: FinishReason | None = None
    kv: KVReport | None = None
    started: float | None = None

    @property
    def key(self) -> Key:
        return self.request.key
