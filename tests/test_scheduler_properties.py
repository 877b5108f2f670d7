"""Whatever is asked in whatever order, the scheduler hands every row exactly the memory that its tokens wrote.

A small device executes the plans in order: it remembers what each cell of each block holds, and draws each token from
the prefix that it really reads.
"""
from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inferplane.core.kv.layout import blocks_needed
from inferplane.core.kv.prefix import sha256
from inferplane.core.kv.salt import Salt
from inferplane.core.request import SamplingParams, expand
from inferplane.core.scheduler.config import SchedulerConfig
from inferplane.core.scheduler.scheduler import Scheduler
from inferplane.errors import CapacityError, EngineError, PromptTooLong, RequestError
from inferplane.ops.state import StateArray, StateGroup

EOS = 3
CONTEXT = 24
DRAIN_STEPS = 3000
ARRAYS = {"k": StateArray(1, 8, "float32")}


def group(name: str, block_tokens: int, window: int | None = None, kind: str = "paged") -> StateGroup:
    return StateGroup(name, (0,), ARRAYS, kind, window, block_tokens)


GROUPS = {
    "full": (group("full", 4),),
    "full and window": (group("full", 4), group("window", 4, 6)),
    "window of one block": (group("window", 4, 4),),
    "window of one token": (group("full", 2), group("window", 2, 1)),
    "blocks of three sizes": (group("full", 2), group("wide", 4), group("window", 3, 5)),
    "recurrent": (group("full", 4), group("recurrent", 1, kind="recurrent")),
}
SALTS = [Salt(), Salt(), Salt("z"), Salt("", "z")]
DIGESTS = {
    "sha256": sha256,
    "tokens only": lambda data: data[-8:],
    "two keys": lambda data: bytes([sum(data) % 2]),
}


def root(request) -> int:
    salt = request.salt
    return hash(tuple(tuple(part.encode()) for part in (salt.adapter, salt.media, salt.tenant)))


def grow(prefix: int, token: int) -> int:
    return hash((prefix, token))


class Device:
    """Executes rows in the order of the plans, and asserts that each reads what its own tokens wrote."""

    def __init__(self, groups) -> None:
        self.groups = groups
        self.cells: dict[tuple[int, int, int], int] = {}
        self.last: dict[int, int] = {}
        self.tenants: dict[int, object] = {}
        self.truth: dict[object, list[int]] = {}

    def draw(self, request, prefix: int) -> int:
        return hash((prefix, request.sample_index)) % 4

    def submit(self, plan) -> tuple[dict[int, int], set]:
        written: set[tuple[int, int, int]] = set()
        reads: set[tuple[int, int, int]] = set()
        work = [self._prepare(row) for row in plan.rows]
        for row, prefixes in work:
            for g, one in enumerate(self.groups):
                if one.kind == "paged":
                    reads |= self._read(g, one, row, prefixes)
        for row, prefixes in work:
            written_by_row = self._write(row, prefixes)
            assert not written_by_row & (written | reads), "a row writes where another reads or writes in the same step"
            written |= written_by_row
        tokens = {}
        for place, (row, prefixes) in enumerate(work):
            if row.sample:
                tokens[place] = self.last[row.slot] = self.draw(row.request, prefixes[-1])
                known = self.truth[row.request]
                assert row.position <= len(known)
                if row.position == len(known):
                    known.append(tokens[place])
                assert known[row.position] == tokens[place], "a token was drawn again, and differs"
        return tokens, written

    def _prepare(self, row):
        """The row and the prefixes after 0, 1, ... length tokens of its sequence."""
        known = self.truth.setdefault(row.request, row.request.prompt.tolist())
        assert row.fresh or self.tenants[row.slot] is row.request
        self.tenants[row.slot] = row.request
        if row.pending:
            assert row.count == 1
        tokens = [self.last[row.slot]] if row.pending else row.tokens.tolist()
        assert tokens == known[row.start:row.length], "the row's tokens are not its sequence's"
        prefixes = [root(row.request)]
        for token in known[:row.length]:
            prefixes.append(grow(prefixes[-1], token))
        return row, prefixes

    def _read(self, g, one, row, prefixes):
        first = 0 if one.window is None else max(0, row.start - one.window + 1)
        table, size = row.tables[g], one.block_tokens
        assert not any(table[: first // size]), "a block wholly behind the window is still in the table"
        cells = {(g, int(table[p // size]), p % size): prefixes[p + 1] for p in range(first, row.start)}
        for cell, prefix in cells.items():
            assert cell[1] != 0, "a block that is read was freed"
            assert self.cells.get(cell) == prefix, f"{row.key} reads at {cell} what is not its own"
        return set(cells)

    def _write(self, row, prefixes):
        cells = set()
        for g, one in enumerate(self.groups):
            if one.kind == "recurrent":
                assert len(row.tables[g]) == 0
                continue
            for p in range(row.start, row.length):
                cell = (g, int(row.tables[g][p // one.block_tokens]), p % one.block_tokens)
                assert cell[1] != 0, "a token is written to the null block"
                self.cells[cell] = prefixes[p + 1]
                cells.add(cell)
        return cells


def same(left, right) -> bool:
    """Two plans decide the same."""
    if left is None or right is None:
        return left is right
    return (left.samples, left.preempted, left.token_count) == (right.samples, right.preempted, right.token_count) and all(
        a._replace(tokens=0, tables=0) == b._replace(tokens=0, tables=0)
        and np.array_equal(a.tokens, b.tokens) and all(map(np.array_equal, a.tables, b.tables))
        for a, b in zip(left.rows, right.rows, strict=True)
    )


class Serving(RuleBasedStateMachine):
    @initialize(
        groups=st.sampled_from(sorted(GROUPS)), policy=st.sampled_from(["fcfs", "priority", "fair"]),
        digest=st.sampled_from(["sha256", "sha256", "tokens only", "two keys"]), caching=st.sampled_from([True, True, False]),
        seats=st.integers(1, 4), budget=st.integers(4, 12), long_prefill=st.sampled_from([None, 3]), spare=st.integers(0, 8),
    )
    def start(self, groups, policy, digest, caching, seats, budget, long_prefill, spare) -> None:
        self.groups = GROUPS[groups]
        config = SchedulerConfig(CONTEXT, seats, budget, caching, policy, long_prefill)
        self.blocks = [1 + spare + (blocks_needed(one, CONTEXT) if one.window else 1 + CONTEXT // 2 // one.block_tokens)
                       for one in self.groups]
        self.config = config
        self.scheduler, self.twin = (Scheduler(config, self.groups, self.blocks, digest=DIGESTS[digest]) for _ in range(2))
        self.device = Device(self.groups)
        self.flight: deque = deque()
        self.alive: dict = {}
        self.drawn: dict = {}
        self.now = 0.0

    def both(self, name: str, *arguments):
        """The same call to the scheduler and to its twin, which must answer alike."""
        self.now += 1.0
        answers = []
        for scheduler in (self.scheduler, self.twin):
            try:
                answers.append(getattr(scheduler, name)(*arguments, self.now))
            except (CapacityError, RequestError) as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
        return answers[0]

    @rule(name=st.sampled_from("abcdefgh"), prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14), n=st.integers(1, 2),
          max_tokens=st.integers(1, 9), min_tokens=st.integers(0, 2), penalty=st.sampled_from([0.0, 0.0, 0.5]),
          priority=st.integers(0, 2), tenant=st.sampled_from("xyz"), salt=st.sampled_from(SALTS))
    def add(self, name, prompt, n, max_tokens, min_tokens, penalty, priority, tenant, salt) -> None:
        params = SamplingParams(n=n, max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), frequency_penalty=penalty)
        requests = expand(
            name, prompt, params, eos_ids=[EOS], max_model_len=CONTEXT, priority=priority, tenant=tenant, salt=salt)
        for request in requests:
            answer = self.both("add", request)
            assert (request.key in self.alive) <= (answer is not None)
            if answer is None:
                self.alive[request.key] = request
                self.drawn[request.key] = 0

    @rule(prompt=st.sampled_from([[0] * 14, [0, 1] * 6, [0] * 11, [0] * 9]), n=st.integers(2, 4), salt=st.sampled_from(SALTS))
    def add_many_alike(self, prompt, n, salt) -> None:
        params = SamplingParams(n=n, max_tokens=6)
        for request in expand(f"alike {self.now}", prompt, params, eos_ids=[], max_model_len=CONTEXT, salt=salt):
            if self.both("add", request) is None:
                self.alive[request.key] = request
                self.drawn[request.key] = 0

    @rule()
    @precondition(lambda self: len(self.flight) < 2)
    def plan(self) -> None:
        self.now += 1.0
        plan, twin = self.scheduler.plan(self.now), self.twin.plan(self.now)
        assert same(plan, twin), "two schedulers that were told the same planned differently"
        if plan is None:
            return
        keys = [row.key for row in plan.rows]
        assert set(keys) <= set(self.alive)
        assert len(set(keys)) == len(keys) == len({row.slot for row in plan.rows}) <= self.config.max_num_seqs
        assert plan.token_count == sum(row.count for row in plan.rows) <= self.config.max_num_batched_tokens
        assert all(row.count >= 1 for row in plan.rows)
        assert not set(keys) & set(plan.preempted)
        assert plan.samples == tuple(i for i, row in enumerate(plan.rows) if row.sample)
        assert all(1 <= row.slot <= self.config.max_num_seqs for row in plan.rows)
        waiting_for = {row.key for (old, *_) in self.flight for row in old.rows if row.sample}
        for row in plan.rows:
            if row.pending:
                assert row.key in waiting_for
                assert not row.request.params.needs_host
            assert row.length < len(row.request.prompt) + row.request.max_tokens, "a row beyond the last token"
        self.flight.append((plan, twin, *self.device.submit(plan)))

    @rule()
    @precondition(lambda self: self.flight)
    def update(self) -> None:
        self.now += 1.0
        plan, twin, tokens, _ = self.flight.popleft()
        updates = self.scheduler.update(plan, tokens, self.now)
        assert updates == self.twin.update(twin, tokens, self.now)
        voided = getattr(self, "voided", None)
        expected = [] if plan is voided else [
            place for place in plan.samples if self.alive.get(plan.rows[place].key) is plan.rows[place].request]
        assert [update.request for update in updates] == [plan.rows[place].request for place in expected]
        for update, place in zip(updates, expected, strict=True):
            request = update.request
            assert update.token == tokens[place]
            assert update.index == self.drawn[update.key]
            self.drawn[update.key] += 1
            stops = update.token in request.stop_ids and update.index >= request.params.min_tokens
            reason = "stop" if stops else "length" if update.index + 1 == request.max_tokens else None
            assert update.reason == reason
            if reason:
                self.end(update)

    def end(self, update) -> None:
        del self.alive[update.key]
        assert update.kv is not None

    @rule(data=st.data())
    @precondition(lambda self: self.alive)
    def abort(self, data) -> None:
        name = data.draw(st.sampled_from(sorted({key.request_id for key in self.alive})))
        gone = self.both("abort", name)
        assert {update.key for update in gone} == {key for key in self.alive if key.request_id == name}
        for update in gone:
            assert (update.token, update.reason) == (None, "abort")
            self.end(update)

    @rule(data=st.data())
    @precondition(lambda self: self.alive)
    def finish(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.alive)))
        update = self.both("finish", key, "stop")
        assert (update.key, update.reason) == (key, "stop")
        self.end(update)

    @rule(chance=st.integers(0, 9))
    @precondition(lambda self: self.flight)
    def fail(self, chance) -> None:
        if chance:
            return
        self.now += 1.0
        plan, twin, _, written = self.flight.popleft()
        gone = self.scheduler.fail(plan, self.now)
        assert gone == self.twin.fail(twin, self.now)
        for lost in (written, *(later[3] for later in self.flight)):
            for cell in lost:
                self.device.cells[cell] = -1
        for later in self.flight:
            self.voided = later[0]
        for update in gone:
            self.end(update)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        stats, kv = self.scheduler.stats(), self.scheduler.kv_stats()
        assert stats.running + stats.waiting == self.scheduler.unfinished_count == len(self.alive)
        paged = [blocks for one, blocks in zip(self.groups, self.blocks, strict=True) if one.kind == "paged"]
        counts = zip(kv.free_blocks, kv.cached_blocks, kv.held_blocks, strict=True)
        assert [sum(parts) for parts in counts] == [blocks - 1 for blocks in paged]
        if not stats.running:
            assert not any(kv.held_blocks), "blocks leak"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(DRAIN_STEPS):
            if not self.alive and not self.flight:
                break
            under_way = len(self.flight)
            if under_way < 2:
                self.plan()
            if self.flight and (len(self.flight) == 2 or len(self.flight) == under_way):
                self.update()
        assert not self.alive, "a request starves"
        self.nothing_is_lost()
        assert self.scheduler.stats().following == 0
        memory = self.scheduler._memory
        assert not any(one.pool.holders(block) for one in memory._paged for block in range(one.pool.count))
        assert all(index.consistent() for index in memory.indexes)


Serving.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestServing = Serving.TestCase


def test_a_third_plan_under_way_is_refused() -> None:
    scheduler = Scheduler(SchedulerConfig(CONTEXT), GROUPS["full"], [20])
    scheduler.add(expand("a", [1], SamplingParams(max_tokens=9), eos_ids=[], max_model_len=CONTEXT)[0], 0.0)
    assert scheduler.plan(0.0)
    assert scheduler.plan(0.0)
    with pytest.raises(EngineError, match="2 plans are under way"):
        scheduler.plan(0.0)


def test_a_prompt_beyond_the_context_is_refused_at_once() -> None:
    scheduler = Scheduler(SchedulerConfig(CONTEXT), GROUPS["full"], [20])
    with pytest.raises(PromptTooLong, match="context is 24 tokens"):
        scheduler.add(expand("a", [1] * 20, SamplingParams(max_tokens=5), eos_ids=[], max_model_len=CONTEXT)[0], 0.0)
