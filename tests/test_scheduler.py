"""What a step computes, and what becomes of a request: one behaviour at a time."""
from __future__ import annotations

import numpy as np
import pytest
from inferplane.core.kv.salt import Salt
from inferplane.core.kv.stats import Reason
from inferplane.core.request import Key, Request, SamplingParams, expand
from inferplane.core.scheduler.config import SchedulerConfig
from inferplane.core.scheduler.plan import StepPlan, Update
from inferplane.core.scheduler.scheduler import Scheduler
from inferplane.errors import CapacityError, ConfigError, EngineError, PromptTooLong, RequestError
from inferplane.ops.state import StateArray, StateGroup

ARRAYS = {"k": StateArray(1, 8, "float32")}
FULL = StateGroup("full", (0,), ARRAYS, block_tokens=16)
WINDOW = StateGroup("window", (1,), ARRAYS, window=32, block_tokens=16)
RECURRENT = StateGroup("recurrent", (2,), ARRAYS, kind="recurrent", block_tokens=1)
EOS = 2


def scheduler(groups=(FULL,), blocks: int = 1000, **config) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"max_model_len": 20_000, **config}), groups, [blocks] * len(groups))


def request(name: str, prompt, max_tokens: int = 8, *, salt: Salt | None = None, **params) -> Request:
    """`prompt`: tokens, or how many of the same ones."""
    tokens = range(100, 100 + prompt) if isinstance(prompt, int) else prompt
    asked = SamplingParams(max_tokens=max_tokens, **params)
    return expand(name, list(tokens), asked, eos_ids=[EOS], max_model_len=20_000, salt=salt)[0]


def shape(plan: StepPlan | None) -> dict[str, tuple[int, int]]:
    return {} if plan is None else {row.key.request_id: (row.start, row.count) for row in plan.rows}


def step(one: Scheduler, token: int = 7, now: float = 0.0) -> tuple[StepPlan, list[Update]]:
    """A plan and its update, without another one ahead."""
    plan = one.plan(now)
    assert plan is not None
    return plan, one.update(plan, dict.fromkeys(plan.samples, token), now)


def run(one: Scheduler, token: int = 7, steps: int = 1000) -> list[Update]:
    """Everything that is still to come, without a plan ahead."""
    updates = []
    for _ in range(steps):
        plan = one.plan(0.0)
        if plan is None:
            return updates
        updates += one.update(plan, dict.fromkeys(plan.samples, token), 0.0)
    raise AssertionError("the scheduler does not come to an end")


class TestAStep:
    def test_nothing_to_do_is_no_plan(self) -> None:
        assert scheduler().plan(0.0) is None

    def test_a_long_prompt_is_computed_in_chunks_of_the_budget(self) -> None:
        one = scheduler(max_num_seqs=4, max_num_batched_tokens=100)
        one.add(request("a", 250), 0.0)
        chunks = [step(one)[0].rows[0] for _ in range(4)]
        assert [(row.start, row.count, row.sample) for row in chunks] == [
            (0, 100, False), (100, 100, False), (200, 50, True), (250, 1, True)]
        assert [row.fresh for row in chunks] == [True, False, False, False]
        assert chunks[2].position == chunks[2].length == 250

    def test_decodes_come_first_and_prefills_get_what_is_left(self) -> None:
        one = scheduler(max_num_seqs=4, max_num_batched_tokens=64)
        one.add(request("a", 10), 0.0)
        step(one)
        one.add(request("b", 200), 0.0)
        plan, _ = step(one)
        assert [(row.key.request_id, row.count) for row in plan.rows] == [("a", 1), ("b", 63)]
        assert plan.token_count == 64

    def test_one_long_prompt_leaves_room_for_others_when_it_is_limited(self) -> None:
        one = scheduler(max_num_seqs=4, max_num_batched_tokens=64, long_prefill_tokens=40)
        one.add(request("a", 200), 0.0)
        one.add(request("b", range(500, 530)), 0.0)
        assert shape(step(one)[0]) == {"a": (0, 40), "b": (0, 24)}

    def test_no_more_run_than_there_are_seats(self) -> None:
        one = scheduler(max_num_seqs=2)
        for name in "abc":
            one.add(request(name, [ord(name)]), 0.0)
        assert sorted(shape(one.plan(0.0))) == ["a", "b"]
        assert (one.running_count, one.waiting_count, one.unfinished_count) == (2, 1, 3)

    def test_a_row_keeps_its_slot_and_a_freed_one_is_used_again(self) -> None:
        one = scheduler(max_num_seqs=2)
        one.add(request("a", [1], max_tokens=2), 0.0)
        one.add(request("b", [3], max_tokens=9), 0.0)
        slots = [{row.key.request_id: row.slot for row in step(one)[0].rows} for _ in range(3)]
        assert slots == [{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"b": 2}]
        one.add(request("c", [4]), 0.0)
        assert {row.key.request_id: (row.slot, row.fresh) for row in step(one)[0].rows} == {"b": (2, False), "c": (1, True)}

    def test_a_table_in_hand_never_changes(self) -> None:
        one = scheduler((FULL, WINDOW), max_num_seqs=1, max_num_batched_tokens=16)
        one.add(request("a", 100, max_tokens=60), 0.0)
        seen = []
        for _ in range(60):
            plan = step(one)[0]
            seen += [(table, table.copy()) for table in plan.rows[0].tables]
        assert all(np.array_equal(table, copy) for table, copy in seen)
        with pytest.raises(ValueError, match="read-only"):
            seen[0][0][0] = 5


class TestPlanningAhead:
    def test_a_decode_is_planned_while_its_token_is_drawn(self) -> None:
        one = scheduler()
        one.add(request("a", 10), 0.0)
        first, second = one.plan(0.0), one.plan(0.0)
        assert first is not None
        assert second is not None
        assert not first.rows[0].pending
        row = second.rows[0]
        assert (row.start, row.count, row.pending, row.sample, row.tokens.tolist()) == (10, 1, True, True, [0])
        assert one.update(first, {0: 55}, 0.0)[0].token == 55
        third = one.plan(0.0)
        assert third is not None
        assert third.rows[0].pending
        one.update(second, {0: 66}, 0.0)
        one.update(third, {0: 77}, 0.0)
        fourth = one.plan(0.0)
        assert fourth is not None
        assert (fourth.rows[0].tokens.tolist(), fourth.rows[0].pending) == ([77], False)

    def test_a_row_that_ends_by_length_is_not_planned_ahead(self) -> None:
        one = scheduler()
        one.add(request("a", 10, max_tokens=2), 0.0)
        one.plan(0.0)
        last = one.plan(0.0)
        assert last is not None
        first = one._flight[0][0]
        one.update(first, {0: 5}, 0.0)
        assert one.plan(0.0) is None
        assert one.update(last, {0: 5}, 0.0)[0].reason == "length"

    @pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
    def test_a_penalized_row_waits_for_the_host(self, penalty: str) -> None:
        one = scheduler()
        one.add(request("a", 10, **{penalty: 1.5}), 0.0)
        one.add(request("b", [9, 9, 9]), 0.0)
        one.plan(0.0)
        assert list(shape(one.plan(0.0))) == ["b"]

    def test_a_late_token_of_an_ended_request_is_dropped(self) -> None:
        one = scheduler()
        one.add(request("a", 10), 0.0)
        first, second = one.plan(0.0), one.plan(0.0)
        assert first is not None
        assert second is not None
        ended = one.update(first, {0: EOS}, 0.0)
        assert [(update.token, update.index, update.reason) for update in ended] == [(EOS, 0, "stop")]
        assert one.kv_stats().held_blocks == (0,)
        assert one.update(second, {0: 5}, 0.0) == []

    def test_a_late_token_never_reaches_a_new_request_of_the_same_name(self) -> None:
        one = scheduler()
        one.add(request("a", 10), 0.0)
        first = one.plan(0.0)
        assert first is not None
        one.abort("a", 0.0)
        one.add(request("a", 10), 0.0)
        again = one.plan(0.0)
        assert again is not None
        assert one.update(first, {0: 5}, 0.0) == []
        assert [(update.token, update.index) for update in one.update(again, {0: 6}, 0.0)] == [(6, 0)]

    def test_updates_out_of_order_or_without_tokens_are_refused(self) -> None:
        one = scheduler()
        one.add(request("a", 10), 0.0)
        first, second = one.plan(0.0), one.plan(0.0)
        assert first is not None
        assert second is not None
        with pytest.raises(EngineError, match="not the next"):
            one.update(second, {0: 5}, 0.0)
        with pytest.raises(EngineError, match=r"rows \[0\], and none was given"):
            one.update(first, {}, 0.0)
        assert one.update(first, {0: 5}, 0.0)


class TestAnEnd:
    def test_the_last_token_says_length(self) -> None:
        one = scheduler()
        one.add(request("a", 10, max_tokens=3), 0.0)
        assert [(update.index, update.reason) for update in run(one)] == [(0, None), (1, None), (2, "length")]

    def test_a_stop_token_counts_only_after_min_tokens(self) -> None:
        one = scheduler()
        one.add(request("a", 10, min_tokens=2), 0.0)
        assert [(update.index, update.reason) for update in run(one, EOS)] == [(0, None), (1, None), (2, "stop")]

    def test_an_ignored_eos_does_not_stop(self) -> None:
        one = scheduler()
        one.add(request("a", 10, max_tokens=2, ignore_eos=True), 0.0)
        assert run(one, EOS)[-1].reason == "length"

    def test_the_engine_ends_one_sample_and_the_other_goes_on(self) -> None:
        one = scheduler()
        for sample in expand("a", [1, 3], SamplingParams(n=2, max_tokens=4), eos_ids=[], max_model_len=100):
            one.add(sample, 0.0)
        step(one)
        update = one.finish(Key("a", 1), "stop", 0.0)
        assert update is not None
        assert (update.key, update.token, update.reason) == (Key("a", 1), None, "stop")
        assert one.finish(Key("a", 1), "stop", 0.0) is None
        assert {update.key for update in run(one)} == {Key("a", 0)}

    def test_an_abort_ends_all_samples_and_is_harmless_twice(self) -> None:
        one = scheduler()
        for sample in expand("a", [1, 3], SamplingParams(n=3), eos_ids=[], max_model_len=100):
            one.add(sample, 0.0)
        step(one)
        assert [update.reason for update in one.abort("a", 0.0)] == ["abort"] * 3
        assert one.abort("a", 0.0) == []
        assert not one.has_unfinished
        assert one.plan(0.0) is None

    def test_a_failed_step_ends_its_own_requests_and_others_are_computed_again(self) -> None:
        one = scheduler()
        one.add(request("a", 40), 0.0)
        first = one.plan(0.0)
        assert first is not None
        one.add(request("b", 40), 0.0)
        second = one.plan(0.0)
        assert second is not None
        assert shape(second) == {"a": (40, 1), "b": (32, 8)}
        assert [update.key.request_id for update in one.fail(first, 0.0)] == ["a"]
        assert one.update(second, {0: 5, 1: 5}, 0.0) == []
        assert shape(one.plan(0.0)) == {"b": (0, 40)}


class TestRefusals:
    def test_what_exceeds_the_context_is_refused(self) -> None:
        with pytest.raises(PromptTooLong, match=r"asks for 8 tokens after a prompt of 95; .*100 tokens"):
            scheduler(max_model_len=100).add(request("a", 95), 0.0)

    def test_what_can_never_fit_is_refused(self) -> None:
        with pytest.raises(CapacityError, match=r"needs 7 blocks of state group 'full' .* there are 6"):
            scheduler(blocks=7).add(request("a", 89, max_tokens=9), 0.0)

    def test_a_window_needs_no_more_blocks_than_it_can_touch(self) -> None:
        one = scheduler((WINDOW,), blocks=4)
        one.add(request("a", 500, max_tokens=100), 0.0)
        assert run(one)[-1].reason == "length"
        with pytest.raises(CapacityError, match=r"needs 3 blocks of state group 'window'"):
            scheduler((WINDOW,), blocks=3).add(request("a", 500), 0.0)

    def test_a_name_in_use_is_refused(self) -> None:
        one = scheduler()
        one.add(request("a", 10), 0.0)
        with pytest.raises(RequestError, match="being computed already"):
            one.add(request("a", 10), 0.0)

    def test_a_budget_below_the_seats_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="max_num_batched_tokens is 8, fewer than max_num_seqs, 16"):
            SchedulerConfig(100, max_num_seqs=16, max_num_batched_tokens=8)

    @pytest.mark.parametrize("value", [0, -1, True, "8", 2.0])
    def test_a_size_that_is_none_is_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="max_num_seqs must be an integer"):
            SchedulerConfig(100, max_num_seqs=value)  # type: ignore[arg-type]

    def test_a_group_without_its_number_of_blocks_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="2 state groups need as many"):
            Scheduler(SchedulerConfig(100), (FULL, WINDOW), [10])


class TestSharedPrefixes:
    def test_sixty_four_requests_with_one_prefix_compute_it_once(self) -> None:
        one = scheduler(blocks=3000, max_num_batched_tokens=2048)
        prefix = list(range(1000, 11_000))
        for i in range(64):
            one.add(request(f"r{i}", [*prefix, i], max_tokens=4), 0.0)
        computed = 0
        for _ in range(40):
            plan = one.plan(0.0)
            if plan is None:
                break
            computed += sum(row.count for row in plan.rows if row.length <= len(prefix) + 1)
            one.update(plan, dict.fromkeys(plan.samples, 7), 0.0)
        assert not one.has_unfinished
        assert computed == len(prefix) + 64
        assert one.kv_stats().hit_tokens == 63 * len(prefix)

    def test_a_block_is_not_read_in_the_step_that_computes_it(self) -> None:
        one = scheduler()
        one.add(request("a", 40), 0.0)
        one.add(request("b", 40), 0.0)
        assert shape(one.plan(0.0)) == {"a": (0, 40)}
        assert shape(one.plan(0.0)) == {"a": (40, 1), "b": (32, 8)}

    def test_a_full_hit_still_computes_the_last_token(self) -> None:
        one = scheduler()
        for name in "ab":
            one.add(request(name, 32, max_tokens=1), 0.0)
            updates = run(one)
        assert updates[-1].kv is not None
        assert updates[-1].kv.hit_tokens == 16
        assert [(run.reason, run.first, run.blocks) for run in updates[-1].kv.computed] == [(Reason.LOGITS, 1, 1)]

    def test_an_answer_is_a_prefix_of_the_next_turn(self) -> None:
        one = scheduler()
        one.add(request("a", 30, max_tokens=20), 0.0)
        run(one)
        one.add(request("b", [*range(100, 130), *[7] * 20, 9, 9]), 0.0)
        assert shape(one.plan(0.0)) == {"b": (48, 4)}

    @pytest.mark.parametrize("other", [Salt(adapter="x"), Salt(media="x"), Salt(tenant="x")], ids=["adapter", "media", "tenant"])
    def test_salts_never_share(self, other: Salt) -> None:
        one = scheduler()
        for i, salt in enumerate([Salt(), Salt(adapter="x"), Salt(media="x"), Salt(tenant="x")]):
            if salt != other:
                one.add(request(f"r{i}", 64, max_tokens=1, salt=salt), 0.0)
        run(one)
        one.add(request("b", 64, max_tokens=1, salt=other), 0.0)
        update = run(one)[-1]
        assert update.kv is not None
        assert (update.kv.hit_tokens, update.kv.blocks(Reason.SALT_DIFFERS)) == (0, 4)

    def test_another_leads_when_the_leader_is_aborted(self) -> None:
        one = scheduler(max_num_seqs=4, max_num_batched_tokens=64, long_prefill_tokens=32)
        for name in "abc":
            one.add(request(name, 100), 0.0)
        assert shape(one.plan(0.0)) == {"a": (0, 32)}
        assert one.stats().following == 2
        one.abort("a", 0.0)
        assert shape(one.plan(0.0)) == {"b": (32, 32)}

    def test_a_follower_can_be_aborted(self) -> None:
        one = scheduler(max_num_seqs=4, max_num_batched_tokens=64, long_prefill_tokens=32)
        for name in "abc":
            one.add(request(name, 100), 0.0)
        one.plan(0.0)
        one.abort("b", 0.0)
        assert (one.stats().following, one.unfinished_count) == (1, 2)
        assert {update.key.request_id for update in run_from(one)} == {"a", "c"}

    def test_recurrent_groups_turn_sharing_off_and_have_no_table(self) -> None:
        one = scheduler((FULL, RECURRENT))
        assert not one.prefix_caching
        for name in "ab":
            one.add(request(name, 40), 0.0)
        plan = one.plan(0.0)
        assert shape(plan) == {"a": (0, 40), "b": (0, 40)}
        assert plan is not None
        assert [len(table) for table in plan.rows[0].tables] == [3, 0]

    def test_sharing_can_be_turned_off(self) -> None:
        one = scheduler(enable_prefix_caching=False)
        for name in "ab":
            one.add(request(name, 40), 0.0)
        assert shape(one.plan(0.0)) == {"a": (0, 40), "b": (0, 40)}


def run_from(one: Scheduler) -> list[Update]:
    """As `run`, with a plan under way."""
    plan = one._flight[0][0]
    return one.update(plan, dict.fromkeys(plan.samples, 7), 0.0) + run(one)


class TestPreemption:
    def test_the_latest_yields_and_goes_on_with_its_tokens(self) -> None:
        one = scheduler(blocks=6, max_num_seqs=2)
        one.add(request("a", 30, max_tokens=30), 0.0)
        one.add(request("b", range(500, 530), max_tokens=30), 0.0)
        token, last, preempted = 1000, {}, []
        drawn: dict[str, list[int]] = {"a": [], "b": []}
        while (plan := one.plan(0.0)) is not None:
            preempted += plan.preempted
            for row in plan.rows:
                known = [*row.request.prompt.tolist(), *drawn[row.key.request_id]]
                assert row.tokens.tolist() == known[row.start:row.length]
            tokens = {place: (token := token + 1) for place in plan.samples}
            for update in one.update(plan, tokens, 0.0):
                drawn[update.key.request_id].append(update.token)
                last[update.key.request_id] = update
        assert preempted == [Key("b")]
        assert one.stats().preemptions == 1
        assert [len(tokens) for tokens in drawn.values()] == [30, 30]
        assert {update.reason for update in last.values()} == {"length"}

    def test_a_token_drawn_while_its_row_is_preempted_is_kept(self) -> None:
        one = scheduler(blocks=5, max_num_seqs=2)
        one.add(request("a", 31, max_tokens=30), 0.0)
        one.add(request("b", range(500, 531), max_tokens=20), 0.0)
        first = one.plan(0.0)
        second = one.plan(0.0)
        assert first is not None
        assert second is not None
        assert [update.index for update in one.update(first, {0: 5, 1: 6}, 0.0)] == [0, 0]
        third = one.plan(0.0)
        assert third is not None
        assert third.preempted == (Key("b"),)
        assert [(u.key.request_id, u.token, u.index) for u in one.update(second, {0: 7, 1: 8}, 0.0)] == [("a", 7, 1), ("b", 8, 1)]
        one.abort("a", 0.0)
        one.update(third, {}, 0.0)
        again = one.plan(0.0)
        assert again is not None
        row = again.rows[0]
        assert row.fresh
        assert [*row.request.prompt.tolist(), 6, 8][row.start:] == row.tokens.tolist()

    def test_recomputed_blocks_are_told_as_evicted_and_by_whom(self) -> None:
        one = scheduler(blocks=5)
        one.add(request("a", 40, max_tokens=1), 0.0)
        run(one)
        one.add(request("b", range(500, 560), max_tokens=1), 0.0)
        run(one)
        one.add(request("c", 40, max_tokens=1), 0.0)
        update = run(one)[-1]
        assert update.kv is not None
        lost = update.kv.computed[0]
        assert (lost.reason, lost.first, lost.blocks) == (Reason.EVICTED, 0, 2)
        assert lost.eviction is not None
        assert (lost.eviction.group, lost.eviction.by, lost.eviction.number) == ("full", "b", 2)

    def test_a_request_that_needs_every_block_gets_them(self) -> None:
        one = scheduler(blocks=9, max_num_seqs=4, max_num_batched_tokens=16)
        for name in "abc":
            one.add(request(name, [ord(name)] * 100, max_tokens=29), 0.0)
        assert [update.key.request_id for update in run(one) if update.reason] == ["a", "b", "c"]
