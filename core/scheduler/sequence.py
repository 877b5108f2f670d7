"""A request while it is computed: the scheduler's own changing state for it."""
from __future__ import annotations

import numpy as np

from ..kv.chain import Chain
from ..kv.lease import Lease
from ..kv.stats import Computed, KVReport
from .policy import Ticket


class Sequence:
    """tokens [capacity] int32, read-only: the prompt and what was drawn, of which `known` are.

    computed: tokens whose computation was planned. pending: draws under way. limit: the most tokens it may reach.
    slot 0 and lease None: it waits. following: for another's blocks. step: the last plan with a row of it.
    started: seconds, when its first row was planned; None: not yet.
    """

    __slots__ = (
        "_buffer", "account", "admitted", "chain", "computed", "ended", "following", "hit_tokens", "known", "lease", "limit",
        "min_tokens", "needs_host", "pending", "prompt_tokens", "rank", "request", "scored", "slot", "started", "step", "stop_ids",
        "ticket", "tokens",
    )

    def __init__(self, ticket: Ticket, rank: tuple[int, ...], chain: Chain) -> None:
        request = ticket.request
        self.ticket, self.request, self.rank, self.chain = ticket, request, rank, chain
        self._buffer = self.tokens = request.prompt
        self.prompt_tokens = self.known = len(request.prompt)
        self.limit = self.prompt_tokens + request.max_tokens
        self.min_tokens = self.prompt_tokens + request.params.min_tokens
        self.stop_ids = request.stop_ids
        self.needs_host = request.params.needs_host
        self.scored = request.params.prompt_logprobs is not None
        self.computed = self.pending = self.slot = self.step = self.hit_tokens = 0
        self.lease: Lease | None = None
        self.started: float | None = None
        self.admitted = self.following = self.ended = False
        self.account: tuple[Computed, ...] = ()

    def append(self, token: int) -> None:
        known = self.known
        if known == len(self._buffer):
            grown = np.empty(max(2 * known, 64), "<i4")
            grown[:known] = self._buffer
            self._buffer = grown
            self.tokens = grown[:]
            self.tokens.setflags(write=False)
        self._buffer[known] = token
        self.known = known + 1

    @property
    def report(self) -> KVReport:
        return KVReport(self.hit_tokens, self.account)
