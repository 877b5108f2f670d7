"""The scheduler: which tokens of which sequences the next step computes, and what became of them."""
from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from operator import attrgetter

import numpy as np

from ...errors import CapacityError, ConfigError, EngineError, PromptTooLong, RequestError
from ...ops.state import StateGroup
from ..kv.layout import blocks_needed
from ..kv.memory import KVMemory
from ..kv.prefix import Digest, sha256
from ..kv.stats import KVStats
from ..request import Key, Request
from .config import SchedulerConfig
from .leaders import Leaders
from .plan import FinishReason, RowPlan, StepPlan, Update
from .policy import Ticket, find_policy
from .sequence import Sequence
from .stats import SchedulerStats

MOST_PLANS_UNDER_WAY = 2
MOST_PARKED_PER_PLAN = 64
MOST_SCORED_PER_PLAN = 256
"""Tokens of prompts whose log-probabilities are wanted: each has a row of logits, as wide as the vocabulary."""
RANK = attrgetter("rank")
UNKNOWN = np.zeros(1, np.int32)
UNKNOWN.setflags(write=False)


class Draft:
    """A plan in the making. short: a running sequence found no block, so nobody new is let in."""

    __slots__ = ("budget", "now", "number", "preempted", "rows", "samples", "score_budget", "scored", "sequences", "short", "written")

    def __init__(self, number: int, now: float, budget: int) -> None:
        self.number, self.now, self.budget, self.short = number, now, budget, False
        self.rows: list[RowPlan] = []
        self.sequences: list[Sequence | None] = []
        self.samples: list[int] = []
        self.scored: list[int] = []
        self.score_budget = MOST_SCORED_PER_PLAN
        self.written: list[Sequence] = []
        self.preempted: list[Key] = []


class Scheduler:
    """A state machine with no clock and no I/O: the same calls give the same plans.

    plan and update alternate, or one plan is made ahead of the update before it. Each plan must be submitted, in order.
    `blocks`: per group, with the null block; recurrent groups ignore theirs.
    """

    def __init__(self, config: SchedulerConfig, groups: Many[StateGroup], blocks: Many[int], *, digest: Digest = sha256) -> None:
        if len(groups) != len(blocks):
            raise ConfigError(f"{len(groups)} state groups need as many numbers of blocks; found {len(blocks)}. Give one each.")
        self._config = config
        self._groups, self._blocks = tuple(groups), tuple(blocks)
        self._policy = find_policy(config.policy)
        self._memory = KVMemory(groups, blocks, sharing=config.enable_prefix_caching, digest=digest)
        self._lead_tokens = self._memory.lead_tokens
        self._leaders = Leaders()
        self._slots = list(range(config.max_num_seqs, 0, -1))
        self._running: list[Sequence] = []
        self._sequences: dict[str, dict[int, Sequence]] = {}
        self._by_serial: dict[int, Sequence] = {}
        self._following = 0
        self._flight: deque[tuple[StepPlan, list[Sequence | None]]] = deque()
        self._serial = self._number = self._preemptions = 0
        self._refused = (0, 0)

    # What others see

    @property
    def unfinished_count(self) -> int:
        return len(self._by_serial)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._by_serial)

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._by_serial) - len(self._running)

    @property
    def under_way(self) -> int:
        """Plans that were not updated yet: at most two."""
        return len(self._flight)

    @property
    def prefix_caching(self) -> bool:
        """On as configured, but never with recurrent groups: their state stands in a slot, not in blocks."""
        return self._memory.sharing

    @property
    def memory(self) -> KVMemory:
        """For what comes from and goes to elsewhere, between two plans."""
        return self._memory

    def stats(self) -> SchedulerStats:
        return SchedulerStats(self.running_count, self.waiting_count, self._following, self._preemptions, self._number)

    def kv_stats(self) -> KVStats:
        return self._memory.stats()

    # Requests come and go

    def add(self, request: Request, now: float) -> None:
        """Let it wait for its turn. Raises RequestError, PromptTooLong or CapacityError, and then nothing has changed."""
        self.check(request)
        if request.sample_index in self._sequences.get(request.request_id, ()):
            raise RequestError(f"request {request.request_id!r} is being computed already. Give each request a name of its own.")
        self._serial += 1
        ticket = Ticket(self._serial, request)
        sequence = Sequence(ticket, (*self._policy.rank(ticket), ticket.serial), self._memory.chain(request.salt))
        self._sequences.setdefault(request.request_id, {})[request.sample_index] = sequence
        self._by_serial[ticket.serial] = sequence
        self._policy.push(ticket)

    def check(self, request: Request) -> None:
        """Raises PromptTooLong or CapacityError for what could never run. Reads only what is fixed, from any thread."""
        prompt, wanted, most = len(request.prompt), request.max_tokens, self._config.max_model_len
        if prompt + wanted > most:
            raise PromptTooLong(f"request {request.request_id!r} asks for {wanted} tokens after a prompt of {prompt}; the "
                                f"context is {most} tokens. Shorten the prompt or lower max_tokens.")
        for group, blocks in zip(self._groups, self._blocks, strict=True):
            needed = blocks_needed(group, prompt + wanted - 1)
            if group.kind == "paged" and needed > blocks - 1:
                raise CapacityError(
                    f"request {request.request_id!r} needs {needed} blocks of state group {group.name!r} for {prompt} + {wanted} "
                    f"tokens; there are {blocks - 1}. Lower max_tokens, shorten the prompt, or give the KV memory more.")

    def abort(self, request_id: str, now: float) -> list[Update]:
        """End all samples of a request at once, whatever is under way. Empty if it is not, or no longer, there."""
        return [self._end(sequence, "abort", None) for sequence in list(self._sequences.get(request_id, {}).values())]

    def finish(self, key: Key, reason: FinishReason, now: float) -> Update | None:
        """End one sequence because the engine found a reason, as a stop string. None if it is not, or no longer, there."""
        sequence = self._sequences.get(key.request_id, {}).get(key.sample_index)
        return None if sequence is None else self._end(sequence, reason, None)

    def _end(self, sequence: Sequence, reason: FinishReason, token: int | None) -> Update:
        request, ticket = sequence.request, sequence.ticket
        if sequence.lease is not None:
            self._stop(sequence)
        elif sequence.following:
            self._following -= 1
        sequence.ended = True
        self._policy.leave(ticket)
        del self._by_serial[ticket.serial]
        samples = self._sequences[request.request_id]
        del samples[request.sample_index]
        if not samples:
            del self._sequences[request.request_id]
        return Update(request, token, sequence.known - sequence.prompt_tokens - (token is not None), reason, sequence.report,
                      sequence.started)

    def _stop(self, sequence: Sequence) -> None:
        """Its blocks and its slot are free; who followed it looks for another leader."""
        assert sequence.lease is not None
        self._memory.release(sequence.lease)
        sequence.lease = None
        self._slots.append(sequence.slot)
        sequence.slot = 0
        del self._running[bisect_left(self._running, sequence.rank, key=RANK)]
        self._wake(self._leaders.resign(sequence))

    def _wake(self, followers: list[Sequence]) -> None:
        for follower in followers:
            follower.following = False
            self._following -= 1
            self._policy.push(follower.ticket)

    # A plan

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing can be computed before an update or a new request."""
        if len(self._flight) >= MOST_PLANS_UNDER_WAY:
            raise EngineError(f"{len(self._flight)} plans are under way already. Call update with the first one's tokens first.")
        draft = Draft(self._number + 1, now, self._config.max_num_batched_tokens)
        self._memory.begin(draft.number, now)
        prefills = self._decode(draft)
        self._prefill(draft, prefills)
        if not draft.preempted and not draft.short:
            self._admit(draft)
        if not draft.rows:
            return None
        for sequence in draft.written:
            self._commit(sequence)
        self._number = draft.number
        plan = StepPlan(draft.number, now, tuple(draft.rows), tuple(draft.samples),
                        self._config.max_num_batched_tokens - draft.budget, tuple(draft.preempted), tuple(draft.scored))
        self._flight.append((plan, draft.sequences))
        return plan

    def _decode(self, draft: Draft) -> list[Sequence]:
        """A row for each running sequence with one token to feed; returns those with more. The hot loop: 1 us a row."""
        rows, samples, sequences, number = draft.rows, draft.samples, draft.sequences, draft.number
        prefills = []
        for sequence in tuple(self._running):
            start, ahead, known = sequence.computed, sequence.pending, sequence.known
            if known + ahead - start != 1:
                prefills.append(sequence)
                continue
            lease = sequence.lease
            if lease is None or (ahead and (sequence.needs_host or known + ahead >= sequence.limit)):
                continue
            length = start + 1
            if length > lease.due and self._cover(sequence, length, draft) < length:
                draft.short = True
                continue
            if ahead:
                tokens = UNKNOWN
            else:
                tokens = sequence.tokens[start:length]
                if length >= lease.commit_at:
                    draft.written.append(sequence)
            samples.append(len(rows))
            rows.append(RowPlan(sequence.request, sequence.slot, start, 1, tokens, ahead > 0, True, lease.tables, False))
            sequences.append(sequence)
            sequence.computed = length
            sequence.pending = ahead + 1
            sequence.step = number
        draft.budget -= len(rows)
        return prefills

    def _prefill(self, draft: Draft, prefills: list[Sequence]) -> None:
        for sequence in prefills:
            if not draft.budget:
                return
            if sequence.lease is None:
                continue
            count = self._chunk(sequence, sequence.computed, draft)
            if not count:
                continue
            reached = self._cover(sequence, sequence.computed + count, draft)
            if reached > sequence.computed:
                self._row(draft, sequence, reached - sequence.computed, fresh=False)
            else:
                draft.short = True

    def _chunk(self, sequence: Sequence, start: int, draft: Draft) -> int:
        """Tokens from `start` on; 0: not in this plan."""
        left = sequence.known - start
        most = draft.score_budget if sequence.scored and start < sequence.prompt_tokens - 1 else left
        return min(left, draft.budget, self._config.long_prefill_tokens or left, most)

    def _row(self, draft: Draft, sequence: Sequence, count: int, *, fresh: bool) -> None:
        """A row of known tokens."""
        assert sequence.lease is not None
        start = sequence.computed
        length = start + count
        sample = length == sequence.known
        if sample:
            draft.samples.append(len(draft.rows))
            sequence.pending += 1
        if sequence.scored and start < sequence.prompt_tokens - 1:
            draft.scored.append(len(draft.rows))
            draft.score_budget -= count
        draft.rows.append(RowPlan(sequence.request, sequence.slot, start, count, sequence.tokens[start:length], False, sample,
                                  sequence.lease.tables, fresh))
        draft.sequences.append(sequence)
        if length >= sequence.lease.commit_at:
            draft.written.append(sequence)
        draft.budget -= count
        sequence.computed = length
        sequence.step = draft.number

    # Blocks

    def _cover(self, sequence: Sequence, length: int, draft: Draft) -> int:
        """Blocks for as much as there are up to `length`; for one token at least, if others can yield."""
        assert sequence.lease is not None
        request_id = sequence.request.request_id
        while True:
            reached = self._memory.extend(sequence.lease, sequence.computed, length, request_id)
            if reached > sequence.computed:
                return reached
            behind = self._running[bisect_left(self._running, sequence.rank, key=RANK) + 1:]
            idle = [other for other in behind if other.step != draft.number]
            if not idle:
                return reached
            self._preempt(idle[self._policy.victim([other.ticket for other in idle])], draft)

    def _preempt(self, sequence: Sequence, draft: Draft) -> None:
        """It waits again, with its tokens. One that is being drawn is kept when it arrives."""
        self._stop(sequence)
        self._preemptions += 1
        draft.preempted.append(sequence.request.key)
        self._policy.push(sequence.ticket)

    def _commit(self, sequence: Sequence) -> None:
        """Blocks whose step was planned can be found from the next plan on, once their tokens are known."""
        lease = sequence.lease
        assert lease is not None
        written = min(sequence.computed, sequence.known)
        if written >= lease.commit_at:
            self._memory.commit(lease, sequence.chain, sequence.tokens[:written])
            if self._lead_tokens:
                self._wake(self._leaders.advance(sequence, written // self._lead_tokens))

    # Admission

    def _admit(self, draft: Draft) -> None:
        parked = 0
        while draft.budget and self._slots and parked < MOST_PARKED_PER_PLAN:
            ticket = self._policy.peek()
            if ticket is None or self._refused == (ticket.serial, self._memory.releases):
                return
            sequence = self._by_serial[ticket.serial]
            if sequence.pending:
                return
            tokens = sequence.tokens[:sequence.known]
            sequence.chain.extend(tokens)
            hit = self._memory.match(sequence.chain, tokens)
            if self._follows(sequence, hit.tokens):
                parked += 1
                continue
            count = self._chunk(sequence, hit.tokens, draft)
            if not count:
                return
            by, alone = ticket.request.request_id, not self._running
            lease = self._memory.admit(hit, sequence.chain, tokens, hit.tokens + count, by, alone)
            if lease is None:
                self._refused = (ticket.serial, self._memory.releases)
                return
            sequence.lease = lease
            self._start(sequence, hit.tokens, draft.now)
            self._row(draft, sequence, min(count, lease.room - hit.tokens), fresh=True)

    def _follows(self, sequence: Sequence, hit_tokens: int) -> bool:
        """Whether it waits for blocks that another computes now; its last token it computes itself in any case."""
        if not self._lead_tokens:
            return False
        first, end = hit_tokens // self._lead_tokens, (sequence.known - 1) // self._lead_tokens
        awaited = self._leaders.awaited(sequence.chain.keys[0], first, end)
        if awaited is None:
            return False
        self._policy.remove(sequence.ticket)
        self._leaders.follow(sequence, awaited)
        sequence.following = True
        self._following += 1
        return True

    def _start(self, sequence: Sequence, hit_tokens: int, now: float) -> None:
        assert sequence.lease is not None
        self._policy.remove(sequence.ticket)
        sequence.slot = self._slots.pop()
        sequence.computed = hit_tokens
        sequence.hit_tokens += hit_tokens
        sequence.account += sequence.lease.computed
        if not sequence.admitted:
            sequence.admitted, sequence.started = True, now
            self._policy.charge(sequence.ticket, sequence.known - hit_tokens, 0)
        insort(self._running, sequence, key=RANK)
        if self._lead_tokens:
            self._leaders.lead(sequence, sequence.chain.keys[0], hit_tokens // self._lead_tokens)

    # What a step gave

    def update(self, plan: StepPlan, tokens: Mapping[int, int], now: float) -> list[Update]:
        """Take over a step's draws, in the order of the plans. tokens: for each of plan.samples, the drawn token.

        Draws for what ended meanwhile may be missing and are dropped. Raises EngineError, and then nothing has changed.
        """
        self._expect(plan)
        sequences = self._flight[0][1]
        drawn = [(row, sequence) for row in plan.samples if (sequence := sequences[row]) is not None and not sequence.ended]
        missing = [row for row, _ in drawn if row not in tokens]
        if missing:
            raise EngineError(f"plan {plan.number} draws a token for rows {missing}, and none was given. Give one for each.")
        self._flight.popleft()
        return [self._draw(sequence, int(tokens[row])) for row, sequence in drawn]

    def fail(self, plan: StepPlan, now: float) -> list[Update]:
        """Instead of update, when the step failed: its sequences end, with the reason "abort".

        Others may have read what it should have written: all is forgotten, they are computed again, and draws under way are void.
        """
        self._expect(plan)
        _, sequences = self._flight.popleft()
        updates = [self._end(sequence, "abort", None) for sequence in sequences if sequence is not None and not sequence.ended]
        for sequence in tuple(self._running):
            self._stop(sequence)
            self._policy.push(sequence.ticket)
        for _, later in self._flight:
            for voided in later:
                if voided is not None:
                    voided.pending = 0
            later[:] = [None] * len(later)
        self._memory.forget()
        return updates

    def _expect(self, plan: StepPlan) -> None:
        if not self._flight or self._flight[0][0] is not plan:
            raise EngineError(f"plan {plan.number} is not the next to be updated. Update each plan once, in their order.")

    def _draw(self, sequence: Sequence, token: int) -> Update:
        known = sequence.known
        sequence.append(token)
        sequence.pending -= 1
        self._policy.charge(sequence.ticket, 0, 1)
        if token in sequence.stop_ids and known >= sequence.min_tokens:
            return self._end(sequence, "stop", token)
        if known + 1 >= sequence.limit:
            return self._end(sequence, "length", token)
        if sequence.lease is not None:
            self._commit(sequence)
        return Update(sequence.request, token, known - sequence.prompt_tokens)
