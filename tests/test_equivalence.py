"""However a request is computed, its answer is the same: in chunks, from a prefix hit, after a preemption, in a batch, alone."""
from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from inferplane import LLM, SamplingParams
from inferplane.core import score
from inferplane.core.engine import Engine
from inferplane.core.output import CompletionOutput, RequestOutput
from inferplane.errors import EngineError, InferplaneError

PLATFORMS = ("reference", "cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=11, max_tokens=12, ignore_eos=True)
WAYS = {"greedy": GREEDY, "drawn": DRAWN}
TEXTS = [
    "Once upon a time there was a small robot that lived in a library and read every book at night, until one day",
    "Once upon a time there was a small robot that lived in a library and read every book at night, and then",
    "The capital of France is",
    "a",
]
SETTLE_SECONDS = 60.0


def distribution(step: dict[int, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[vocab] float32: one drawn token's whole distribution."""
    made = np.full(len(step), np.nan, np.float32)
    made[list(step)] = [entry.logprob for entry in step.values()]
    return made


def assert_same(found: CompletionOutput, expected: CompletionOutput, *, bits: bool, ended: bool = True) -> None:
    """bits: log-probabilities agree to the bit, not only nearly. ended: otherwise `found` was cut short by an abort."""
    length = len(found.token_ids)
    assert found.token_ids == expected.token_ids[:length]
    if ended:
        assert (length, found.finish_reason, found.stop_reason) == (len(expected.token_ids), expected.finish_reason, expected.stop_reason)
    assert (found.logprobs is None) == (expected.logprobs is None)
    for mine, theirs in zip(found.logprobs or (), expected.logprobs or (), strict=ended):
        left, right = distribution(mine), distribution(theirs)
        assert not np.isnan(left).any()
        assert left.tobytes() == right.tobytes() if bits else np.allclose(left, right, rtol=0, atol=1e-4)


# With the embedded model


class Plain:
    """The embedded model, one request at a time, nothing shared and nothing split."""

    def __init__(self, platform: str) -> None:
        self.platform = platform
        self.llm = embedded(platform, max_num_seqs=1, enable_prefix_caching=False)
        self.known: dict[SamplingParams, list[CompletionOutput]] = {}

    def answers(self, params: SamplingParams) -> list[CompletionOutput]:
        if params not in self.known:
            self.known[params] = [self.llm.generate(text, params)[0].outputs[0] for text in TEXTS]
        return self.known[params]


def embedded(platform: str, **settings: Any) -> LLM:
    return LLM(platform=platform, **{"dtype": "float32", "max_model_len": 256, **settings})


@pytest.fixture(scope="module", params=PLATFORMS)
def plain(request: pytest.FixtureRequest) -> Iterator[Plain]:
    made = Plain(request.param)
    yield made
    made.llm.close()


def assert_all_same(llm: LLM, plain: Plain, params: SamplingParams) -> list[RequestOutput]:
    params = replace(params, logprobs=-1)
    outputs = llm.generate(TEXTS, params)
    for found, expected in zip(outputs, plain.answers(params), strict=True):
        assert_same(found.outputs[0], expected, bits=llm.loaded.resolution.batch_invariant)
    assert not any(llm.stats().kv.held_blocks)
    return outputs


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_in_a_batch_equals_alone(plain: Plain, params: SamplingParams) -> None:
    with embedded(plain.platform, max_num_seqs=8, enable_prefix_caching=False) as llm:
        assert_all_same(llm, plain, params)
        assert llm.stats().steps < 4 * params.max_tokens, "the requests did not share their steps"


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("tokens", [3, 8], ids=lambda tokens: f"{tokens}-tokens-a-step")
def test_chunked_equals_whole(plain: Plain, params: SamplingParams, tokens: int) -> None:
    with embedded(plain.platform, max_num_seqs=2, max_num_batched_tokens=tokens, enable_prefix_caching=False) as llm:
        assert_all_same(llm, plain, params)
        prompts = sum(len(plain.llm.tokenizer.encode(text)) for text in TEXTS)
        assert llm.stats().steps >= prompts / tokens, "no prompt was split"


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_a_prefix_hit_equals_a_miss(plain: Plain, params: SamplingParams) -> None:
    with embedded(plain.platform, max_num_seqs=8) as llm:
        first = assert_all_same(llm, plain, params)
        again = assert_all_same(llm, plain, params)
        assert all(output.metrics.kv.hit_tokens >= 32 for output in again[:2])
        assert first[1].metrics.kv.hit_tokens >= 16, "of two new prompts that begin alike, one waits for the other's blocks"


@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no-caching"])
@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_preempted_equals_not(plain: Plain, small_models: ModuleType, params: SamplingParams, caching: bool) -> None:
    memory = small_models.pool_gb(plain.llm.loaded.model.states, spare=0, sequences=8, tokens=64, length=80)
    with embedded(plain.platform, max_model_len=80, max_num_seqs=8, max_num_batched_tokens=64, kv_cache_memory_gb=memory,
                  enable_prefix_caching=caching) as llm:
        assert_all_same(llm, plain, params)
        assert llm.engine.scheduler.stats().preemptions > 0


@pytest.mark.parametrize("chunk", [1, 7, 16], ids=lambda chunk: f"chunks-of-{chunk}")
def test_scores_in_chunks_are_those_of_the_whole(plain: Plain, chunk: int) -> None:
    tokens = plain.llm.tokenizer.encode(TEXTS[0])
    whole, pieces = score.logits(plain.llm.loaded, tokens), score.logits(plain.llm.loaded, tokens, chunk_tokens=chunk)
    assert whole.shape == (len(tokens), plain.llm.loaded.model.vocab_size)
    assert whole.tobytes() == pieces.tobytes() if plain.llm.loaded.resolution.batch_invariant else np.allclose(whole, pieces, atol=1e-4)


def test_the_engine_draws_from_the_logits_that_scoring_gives(plain: Plain) -> None:
    [output] = plain.llm.generate(TEXTS[0], replace(GREEDY, logprobs=-1))
    tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    logits = score.logits(plain.llm.loaded, tokens[:-1])[len(output.prompt_token_ids) - 1:].astype(np.float64)
    assert tuple(logits.argmax(axis=-1)) == output.outputs[0].token_ids
    expected = logits - logits.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    assert np.allclose([distribution(step) for step in output.outputs[0].logprobs], expected, atol=1e-4)


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_platforms_draw_the_same_tokens(params: SamplingParams) -> None:
    answers = {}
    for name in PLATFORMS:
        with embedded(name) as llm:
            answers[name] = [output.outputs[0].token_ids for output in llm.generate(TEXTS, params)]
    assert answers["cpu"] == answers["reference"]


# With small random models, in any order of events


class Turns:
    """Lets an engine go one turn of its loop at a time; between two turns it stands still."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gate, reached = self._hold()
        reached.wait(SETTLE_SECONDS)

    def _hold(self) -> tuple[threading.Event, threading.Event]:
        gate, reached = threading.Event(), threading.Event()

        def stand() -> None:
            reached.set()
            gate.wait()

        with suppress(EngineError):  # not answered at once: it is to be reached after the next turn
            self.engine.call(stand, timeout_seconds=0.0)
        return gate, reached

    def go(self) -> None:
        gate, reached = self._hold()
        self.gate.set()
        self.gate = gate
        assert reached.wait(SETTLE_SECONDS), "the engine does not come back"

    def release(self) -> None:
        self.gate.set()


@dataclass
class Asked:
    prompt: tuple[int, ...]
    params: SamplingParams
    outputs: list[RequestOutput | InferplaneError]
    ended: threading.Event
    aborted: bool = False

    def take(self, answer: RequestOutput | InferplaneError) -> None:
        self.outputs.append(answer)
        if isinstance(answer, InferplaneError) or answer.finished:
            self.ended.set()


class World:
    """One model on one platform: the simple engine that computes what is expected, and counts over all examples."""

    def __init__(self, models: ModuleType, model: str, platform: str) -> None:
        self.models, self.model, self.platform = models, model, platform
        simple = "reference" if platform == "padded" else platform
        self.simple = models.random_llm(model, simple, max_num_seqs=1, enable_prefix_caching=False)
        self.known: dict[Any, list[CompletionOutput]] = {}
        self.steps = self.preemptions = self.hit_tokens = self.finished = self.aborted = 0

    @property
    def bits(self) -> bool:
        return bool(self.simple.loaded.resolution.batch_invariant)

    def expected(self, prompt: tuple[int, ...], params: SamplingParams) -> list[CompletionOutput]:
        """Each sample's answer, computed alone."""
        if (prompt, params) not in self.known:
            self.known[prompt, params] = list(self.simple.generate(list(prompt), params)[0].outputs)
        return self.known[prompt, params]


def prompts() -> st.SearchStrategy[tuple[int, ...]]:
    """A beginning that others share, cut anywhere, and an end."""
    roots = st.sampled_from([tuple(range(3, 75)), (5, 7) * 30, tuple(range(3, 40)) + (1,) * 30])
    return st.builds(lambda root, length, end: root[:length] + end, roots, st.integers(1, 64), st.sampled_from([(), (9,), (8, 2)]))


def sampling() -> st.SearchStrategy[SamplingParams]:
    drawn = st.fixed_dictionaries({
        "temperature": st.just(1.0), "seed": st.integers(0, 2), "n": st.integers(1, 3), "top_k": st.sampled_from([0, 5]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.0, 1.5]),
    })
    end = st.fixed_dictionaries({
        "max_tokens": st.sampled_from([1, 6, 24]), "logprobs": st.sampled_from([None, -1]),
        "stop_token_ids": st.sampled_from([(), tuple(range(0, 97, 6))]),
    })
    return st.builds(lambda how, end: SamplingParams(**{"temperature": 0.0, **how, **end}), st.one_of(st.just({}), drawn), end)


ABORTED = st.sampled_from([None, None, None, 0, 1, 2])
"""Which of those that run, by age, is aborted."""


class Serving(RuleBasedStateMachine):
    """One engine with little memory and small steps; every answer is compared with the one computed alone."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.asked: dict[str, Asked] = {}
        self.llm: LLM | None = None

    @initialize(caching=st.sampled_from([True, True, False]), sequences=st.integers(2, 4), tokens=st.sampled_from([4, 9, 40, 300]),
                spare=st.integers(0, 2), policy=st.sampled_from(["fcfs", "priority"]), long=st.sampled_from([None, 5]))
    def start(self, caching: bool, sequences: int, tokens: int, spare: int, policy: str, long: int | None) -> None:
        models, world = self.world.models, self.world
        memory = models.pool_gb(world.simple.loaded.model.states, spare=spare, sequences=sequences, tokens=tokens)
        self.llm = models.random_llm(
            world.model, world.platform, max_num_seqs=sequences, max_num_batched_tokens=tokens, long_prefill_tokens=long,
            scheduling_policy=policy, enable_prefix_caching=caching, kv_cache_memory_gb=memory)
        self.engine = self.llm.engine
        self.turns = Turns(self.engine)

    @rule(prompt=prompts(), params=sampling(), priority=st.integers(0, 2), stream=st.booleans(), turns=st.integers(0, 2), aborted=ABORTED)
    def add(self, prompt: tuple[int, ...], params: SamplingParams, priority: int, stream: bool, turns: int, aborted: int | None) -> None:
        asked = Asked(prompt, params, [], threading.Event())
        name = self.engine.submit(self.engine.check(prompt, params), asked.take, stream=stream, priority=priority)
        self.asked[name] = asked
        self.go(turns, aborted)

    @rule(prompt=prompts(), params=sampling(), count=st.integers(2, 4))
    def add_alike(self, prompt: tuple[int, ...], params: SamplingParams, count: int) -> None:
        for _ in range(count):
            self.add(prompt, params, 0, False, 0, None)

    @rule(turns=st.integers(0, 12), aborted=ABORTED)
    def go(self, turns: int, aborted: int | None) -> None:
        alive = self.alive
        if aborted is not None and aborted < len(alive):
            self.asked[alive[aborted]].aborted = True
            self.engine.abort(alive[aborted])
        for _ in range(turns):
            self.turns.go()
        self.world.steps += 1

    @rule()
    @precondition(lambda self: self.alive)
    def wait_for_the_first(self) -> None:
        name = self.alive[0]
        for _ in range(2000):
            if self.asked[name].ended.is_set():
                break
            self.turns.go()
        assert self.asked[name].ended.is_set(), "a request starves"
        self.compare(name)
        self.world.steps += 1

    @property
    def alive(self) -> list[str]:
        return [name for name, asked in self.asked.items() if not asked.ended.is_set()]

    def compare(self, name: str) -> None:
        asked = self.asked.pop(name)
        expected = self.world.expected(asked.prompt, asked.params)
        for before, after in zip(asked.outputs, asked.outputs[1:], strict=False):
            for old, new in zip(before.outputs, after.outputs, strict=True):
                assert new.token_ids[: len(old.token_ids)] == old.token_ids, "what was streamed was taken back"
        last = asked.outputs[-1]
        assert isinstance(last, RequestOutput) and last.finished and sum(output.finished for output in asked.outputs) == 1
        assert last.prompt_token_ids == asked.prompt
        for found, one in zip(last.outputs, expected, strict=True):
            assert asked.aborted or found.finish_reason != "abort"
            assert_same(found, one, bits=self.world.bits, ended=found.finish_reason != "abort")
        self.world.finished += 1
        self.world.aborted += any(found.finish_reason == "abort" for found in last.outputs)

    def teardown(self) -> None:
        if self.llm is None:
            return
        self.turns.release()
        try:
            for name, asked in list(self.asked.items()):
                assert asked.ended.wait(SETTLE_SECONDS), "a request starves"
                self.compare(name)
            stats = self.llm.stats()
            assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0}), "blocks leak"
            self.world.preemptions += self.engine.scheduler.stats().preemptions
            self.world.hit_tokens += stats.kv.hit_tokens
        finally:
            self.llm.close()


PADDED = """
from inferplane.platforms.contract import Buckets, Capabilities
from inferplane.platforms.reference import Reference

class Padded(Reference):
    name = "padded"
    capabilities = Capabilities(dtypes=("float32",), buckets=Buckets(
        tokens=(8, 32), rows=(4,), samples=(4,), blocks=(3, 7), edits=(0, 8)))
"""


@pytest.fixture(params=["reference", "cpu", "padded"])
def platform(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_models: ModuleType) -> Iterator[str]:
    """padded: the reference as a third party's platform with static shapes, so that every step is padded to a bucket."""
    if request.param == "padded":
        small_models.install(tmp_path, "padded", "inferplane.platforms", "padded = padded:Padded", PADDED)
        monkeypatch.syspath_prepend(tmp_path)
    yield request.param
    sys.modules.pop("padded", None)


EXAMPLES = {"reference": 8, "cpu": 14, "padded": 3}
STEPS = 40


@pytest.mark.parametrize("model", ["full", "full-and-sliding"])
def test_whatever_happens_each_answer_is_the_one_computed_alone(small_models: ModuleType, platform: str, model: str) -> None:
    world = World(small_models, model, platform)
    run_state_machine_as_test(lambda: Serving(world), settings=settings(
        max_examples=EXAMPLES[platform], stateful_step_count=STEPS, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)))
    world.simple.close()
    print(f"\n{platform} {model}: {world.steps} steps, {world.finished} requests ended, {world.aborted} of them aborted, "
          f"{world.preemptions} preemptions, {world.hit_tokens} tokens found")
    assert world.steps >= EXAMPLES[platform] * STEPS // 2
    assert min(world.preemptions, world.hit_tokens) > 0 and (world.aborted or platform == "padded"), "what is to be compared did not happen"
