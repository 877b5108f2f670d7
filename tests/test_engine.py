"""The engine and LLM: what is refused, what is streamed, where a text stops, and that nothing hangs, leaks or disturbs a neighbour."""
from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.core.config import EngineConfig
from inferplane.core.engine import Engine
from inferplane.core.env import Environment
from inferplane.core.start import start
from inferplane.errors import CapacityError, ConfigError, EngineError, InferplaneError, PromptTooLong, RequestError

PATIENCE_SECONDS = 60.0
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
WILD = SamplingParams(temperature=1.5, seed=5, max_tokens=40, ignore_eos=True)
TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The embedded model. Each test leaves it as it found it: nothing running, no block held."""
    with LLM(platform="cpu", dtype="float32") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" in request.fixturenames:
        assert_idle(request.getfixturevalue("llm"))


def assert_idle(llm: LLM) -> None:
    stats = llm.stats()
    assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0})


@contextmanager
def standing_still(engine: Engine) -> Iterator[None]:
    """Requests that arrive meanwhile are taken in together."""
    gate, reached = threading.Event(), threading.Event()

    def stand() -> None:
        reached.set()
        gate.wait()

    with suppress(EngineError):
        engine.call(stand, timeout_seconds=0.0)
    assert reached.wait(PATIENCE_SECONDS)
    try:
        yield
    finally:
        gate.set()


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return true()


# What is refused


REFUSED: dict[str, tuple[Any, dict[str, Any], type[InferplaneError], str]] = {
    "too-long": ([1] * 2040, {"max_tokens": 16}, PromptTooLong, "16 tokens after a prompt of 2040; the context is 2048 tokens"),
    "longer-than-the-context": ([1] * 5000, {"max_tokens": None}, PromptTooLong, "after a prompt of 5000"),
    "empty-text": ("", {}, RequestError, "at least one integer token id"),
    "no-ids": ([[]], {}, RequestError, r"text or at least one token id; found \[\]"),
    "negative-id": ([3, -1], {}, RequestError, "found -1 to 3"),
    "id-beyond-the-vocabulary": ([3, 1024], {}, RequestError, "the prompt has token id 1024, and the vocabulary ends at 1023"),
    "id-beyond-32-bits": ([3, 2**40], {}, RequestError, "token ids lie between 0 and"),
    "fractional-ids": (np.array([[1.5, 2.0]]), {}, RequestError, "text or at least one token id"),
    "ids-and-words": ([3, "a"], {}, RequestError, "at least one integer token id"),
    "flags-as-ids": ([True, False], {}, RequestError, "found shape .2. of bool"),
    "bytes": (b"abc", {}, RequestError, "at least one integer token id"),
    "lone-surrogate": ("a\ud800", {}, RequestError, "cannot be encoded"),
    "nothing": (None, {}, RequestError, "found NoneType"),
    "number": (7, {}, RequestError, "found int"),
    "dict-with-neither": ({}, {}, RequestError, "either 'prompt' or 'prompt_token_ids'; found neither"),
    "dict-with-both": ({"prompt": "a", "prompt_token_ids": [1]}, {}, RequestError, "found prompt and prompt_token_ids"),
    "dict-with-a-misspelt-key": ({"promt": "a"}, {}, RequestError, "Did you mean 'prompt'"),
    "salt-that-is-no-text": ({"prompt": "a", "cache_salt": 3}, {}, RequestError, "cache_salt must be a string; found 3"),
    "bias-beyond-the-vocabulary": ("a", {"logit_bias": {5000: 1.0}}, RequestError, "logit_bias has token id 5000"),
    "stop-beyond-the-vocabulary": ("a", {"stop_token_ids": [5000]}, RequestError, "stop_token_ids has token id 5000"),
}


@pytest.mark.parametrize(("prompt", "params", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_request_is_refused_and_the_next_one_runs(
    llm: LLM, prompt: Any, params: dict[str, Any], error: type[InferplaneError], match: str
) -> None:
    before = llm.stats().steps
    with pytest.raises(error, match=match):
        llm.generate(prompt, SamplingParams(**params))
    assert llm.stats().steps == before, "something ran before the request was refused"
    assert len(llm.generate(TEXT, GREEDY)[0].outputs[0].token_ids) == 8


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", math.nan), ("temperature", -1.0), ("top_p", math.nan), ("top_p", 0.0), ("min_p", math.inf), ("max_tokens", 0), ("n", 0),
    ("repetition_penalty", 0.0), ("presence_penalty", 3.0), ("logit_bias", {1: math.nan}), ("seed", 1.5), ("logprobs", -2), ("stop", [""]),
    ("top_k", 2.5), ("min_tokens", -1),
], ids=lambda value: str(value))
def test_a_parameter_that_cannot_be_meant_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_an_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'max_num_seq' is unknown. Did you mean 'max_num_seqs'"):
        LLM(platform="cpu", max_num_seq=3)
    with pytest.raises(RequestError, match="'temprature' is unknown. Did you mean 'temperature'"):
        SamplingParams.from_kwargs(temprature=1.0)


def test_one_wrong_prompt_of_several_keeps_all_from_running(llm: LLM) -> None:
    before = llm.stats().steps
    with pytest.raises(RequestError):
        llm.generate([TEXT, [-5]], GREEDY)
    assert llm.stats().steps == before


def test_parameters_and_priorities_come_one_for_each_prompt(llm: LLM) -> None:
    with pytest.raises(RequestError, match="1 sampling parameters were given for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(RequestError, match="3 priorities were given for 2 prompts"):
        llm.generate(["a", "b"], GREEDY, priority=[1, 2, 3])
    with pytest.raises(RequestError, match="priority must be an integer"):
        llm.generate(["a", "b"], GREEDY, priority=[0, 2**40])


def test_text_is_refused_where_there_is_no_tokenizer(small_models: ModuleType) -> None:
    with small_models.random_llm("full", "cpu") as llm:
        with pytest.raises(RequestError, match="no tokenizer; give token ids"):
            llm.generate("text")
        with pytest.raises(RequestError, match="no chat template"):
            llm.chat([{"role": "user", "content": "hello"}])


def test_memory_for_less_than_one_sequence_is_refused_and_nothing_stays_behind(small_models: ModuleType) -> None:
    before = threading.active_count()
    with pytest.raises(CapacityError, match="one sequence of 96 tokens"):
        small_models.random_llm("full", "cpu", kv_cache_memory_gb=1e-6)
    assert until(lambda: threading.active_count() <= before)


def test_a_request_id_that_is_running_is_refused_and_the_first_goes_on(llm: LLM) -> None:
    engine, answers = llm.engine, [SimpleQueue(), SimpleQueue()]
    with standing_still(engine):
        for queue in answers:
            engine.submit(engine.check(TEXT, GREEDY, "mine"), queue.put)
    first, second = (queue.get(timeout=PATIENCE_SECONDS) for queue in answers)
    assert isinstance(second, RequestError) and "'mine' is already running" in str(second)
    assert first.outputs[0].token_ids == llm.generate(TEXT, GREEDY)[0].outputs[0].token_ids
    engine.submit(engine.check(TEXT, GREEDY, "mine"), answers[0].put)
    assert answers[0].get(timeout=PATIENCE_SECONDS).finished, "the name is free again"


# What comes back


def test_results_stand_in_the_order_of_the_prompts(llm: LLM) -> None:
    lengths = [9, 1, 30, 4, 2]
    prompts = [[3 + i] * (i + 1) for i in range(5)]
    outputs = llm.generate(prompts, [replace(GREEDY, max_tokens=length) for length in lengths])
    assert [list(output.prompt_token_ids) for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    assert llm.generate([]) == []


def test_a_prompt_comes_as_text_or_ids_plainly_or_in_a_dict(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT)
    forms = [TEXT, ids, tuple(ids), np.array(ids), {"prompt": TEXT}, {"prompt_token_ids": ids}, {"prompt": TEXT, "cache_salt": "mine"}]
    outputs = llm.generate(forms, GREEDY)
    assert {output.outputs[0].token_ids for output in outputs} == {outputs[0].outputs[0].token_ids}
    assert {output.prompt_token_ids for output in outputs} == {tuple(ids)}
    assert [output.prompt for output in outputs] == [TEXT, None, None, None, TEXT, None, TEXT]
    assert len(llm.generate(ids, GREEDY)) == 1, "a list of ids is one prompt"


def test_text_is_what_the_tokens_spell(llm: LLM) -> None:
    [output] = llm.generate(TEXT, WILD)
    assert TEXT + output.outputs[0].text == llm.tokenizer.decode([*output.prompt_token_ids, *output.outputs[0].token_ids])


def test_a_salt_keeps_blocks_apart(llm: LLM) -> None:
    ids = [11] * 40
    def hits(salt: str) -> int:
        return llm.generate({"prompt_token_ids": ids, "cache_salt": salt}, GREEDY)[0].metrics.kv.hit_tokens
    assert [hits("a"), hits("a"), hits("b"), hits("b")] == [0, 32, 0, 32]


def test_times_stand_in_order(llm: LLM) -> None:
    metrics = llm.generate(TEXT, GREEDY)[0].metrics
    assert metrics.arrival < metrics.first_token < metrics.finished <= time.monotonic()


def test_samples_of_one_request_differ_and_keep_their_order(llm: LLM) -> None:
    outputs = llm.generate(TEXT, replace(WILD, n=4, max_tokens=12))[0].outputs
    assert [one.index for one in outputs] == [0, 1, 2, 3]
    assert len({one.token_ids for one in outputs}) == 4
    alike = llm.generate(TEXT, replace(GREEDY, n=3))[0].outputs
    assert len({one.token_ids for one in alike}) == 1


def test_a_request_without_a_seed_is_drawn_anew_each_time(llm: LLM) -> None:
    drawn = {llm.generate(TEXT, replace(WILD, seed=None, max_tokens=12))[0].outputs[0].token_ids for _ in range(3)}
    assert len(drawn) == 3


def test_the_engine_s_seed_serves_requests_that_bring_none(small_models: ModuleType) -> None:
    answers = []
    for seed in (1, 1, 2):
        with small_models.random_llm("full", "cpu", seed=seed) as llm:
            answers.append([output.outputs[0].token_ids for output in llm.generate([[3], [3]], SamplingParams())])
    assert answers[0] == answers[1] != answers[2]
    assert answers[0][0] != answers[0][1]


def test_the_higher_priority_runs_first(small_models: ModuleType) -> None:
    ended: list[str] = []
    with small_models.random_llm("full", "cpu", max_num_seqs=1, scheduling_policy="priority") as llm:
        engine, last = llm.engine, threading.Semaphore(0)
        with standing_still(engine):
            for name, priority in (("late", 5), ("first", -1), ("middle", 0)):
                engine.submit(engine.check([3, 4], SamplingParams(max_tokens=4), name), lambda output: (
                    ended.append(output.request_id), last.release()), priority=priority)
        assert all(last.acquire(timeout=PATIENCE_SECONDS) for _ in range(3))
    assert ended == ["first", "middle", "late"]


def test_a_progress_bar_stays_off_stdout(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(llm.generate([TEXT] * 3, GREEDY, use_tqdm=True)) == 3
    assert capsys.readouterr().out == ""


def test_loading_tells_its_progress(small_models: ModuleType) -> None:
    told: list[tuple[str, int, int]] = []
    config = EngineConfig.resolve({"platform": "cpu", "max_num_seqs": 2}, Environment())
    started = start(config, source=small_models.RandomSource(small_models.MODELS["full"]),
                    progress=lambda what, done, total: told.append((what, done, total)))
    started.engine.close()
    assert [done for _, done, _ in told] == list(range(1, told[-1][2] + 1))


# Where a text stops


def test_max_tokens_none_goes_to_the_end_of_the_context(small_models: ModuleType) -> None:
    with small_models.random_llm("full", "cpu") as llm:
        [short, long] = llm.generate([[3] * 10, [3] * 95], SamplingParams(max_tokens=None))
    assert (len(short.outputs[0].token_ids), short.outputs[0].finish_reason) == (small_models.CONTEXT - 10, "length")
    assert len(long.outputs[0].token_ids) == 1


def test_the_end_token_ends_unless_it_is_ignored(llm: LLM) -> None:
    end = min(llm.engine.eos_ids)
    forced = SamplingParams(logit_bias={end: 100.0}, max_tokens=5)
    [stopped] = llm.generate(TEXT, forced)[0].outputs
    assert (stopped.token_ids, stopped.text, stopped.finish_reason, stopped.stop_reason) == ((end,), "", "stop", None)
    [ignored] = llm.generate(TEXT, replace(forced, ignore_eos=True))[0].outputs
    assert (ignored.token_ids, ignored.finish_reason) == ((end,) * 5, "length")


def test_min_tokens_forbids_the_end_until_then(llm: LLM) -> None:
    ends = dict.fromkeys(llm.engine.eos_ids, 100.0)
    [output] = llm.generate(TEXT, SamplingParams(temperature=0.0, logit_bias=ends, min_tokens=4, max_tokens=9))[0].outputs
    assert len(output.token_ids) == 5
    assert not llm.engine.eos_ids & set(output.token_ids[:4])
    assert output.finish_reason == "stop"


def test_a_stop_token_ends_and_is_told(llm: LLM) -> None:
    [whole] = llm.generate(TEXT, WILD)[0].outputs
    stop = next(token for token in whole.token_ids[9:] if token not in llm.engine.eos_ids)
    length = whole.token_ids.index(stop) + 1
    [hidden] = llm.generate(TEXT, replace(WILD, stop_token_ids=[stop]))[0].outputs
    assert (hidden.token_ids, hidden.finish_reason, hidden.stop_reason) == (whole.token_ids[:length], "stop", stop)
    [shown] = llm.generate(TEXT, replace(WILD, stop_token_ids=[stop], include_stop_str_in_output=True))[0].outputs
    assert shown.token_ids == hidden.token_ids
    assert shown.text.startswith(hidden.text) and len(shown.text) > len(hidden.text)


def stops(text: str) -> Iterator[str]:
    """Pieces of a text, short and long, that begin anywhere in a token."""
    for first in range(1, len(text) - 10, 5):
        yield from (text[first : first + length] for length in (1, 3, 8))


@pytest.mark.parametrize("included", [False, True], ids=["left-out", "included"])
def test_a_stop_string_ends_where_it_begins_and_never_shows(llm: LLM, included: bool) -> None:
    params = replace(WILD, max_tokens=24)
    [whole] = llm.generate(TEXT, params)[0].outputs
    found = list(stops(whole.text))
    assert len(found) > 9
    for stop in found:
        at = whole.text.index(stop)
        kept = whole.text[: at + len(stop) if included else at]
        outputs = list(llm.stream(TEXT, replace(params, stop=[stop, "\0never\0"], include_stop_str_in_output=included)))
        [last] = outputs[-1].outputs
        assert (last.text, last.finish_reason, last.stop_reason) == (kept, "stop", stop)
        assert "".join(output.outputs[0].delta for output in outputs) == kept
        assert all(kept.startswith(output.outputs[0].text) for output in outputs), "what was shown was taken back"
        spelt = [llm.tokenizer.detokenizer() for _ in range(2)]
        assert stop in spelt[0].push(last.token_ids) + spelt[0].finish()
        assert stop not in spelt[1].push(last.token_ids[:-1]), "it went on after the stop string"


def test_a_stop_string_that_ends_with_the_last_token_is_a_stop(llm: LLM) -> None:
    params = replace(WILD, max_tokens=6)
    [whole] = llm.generate(TEXT, params)[0].outputs
    [output] = llm.generate(TEXT, replace(params, stop=whole.text[-1]))[0].outputs
    assert output.text == whole.text[: whole.text.index(whole.text[-1])]
    assert output.finish_reason == "stop"


def test_stop_strings_are_not_looked_for_before_min_tokens(llm: LLM) -> None:
    token = llm.tokenizer.encode("a", add_special_tokens=False)[-1]
    forced = SamplingParams(temperature=0.0, logit_bias={token: 1000.0}, stop=["a"], min_tokens=3, max_tokens=9)
    piece = llm.tokenizer.detokenizer().push([token])
    outputs = list(llm.stream(TEXT, replace(forced, stop=[piece, piece * 5 + "!"])))
    [last] = outputs[-1].outputs
    assert (last.text, len(last.token_ids), last.finish_reason) == (piece * 3, 4, "stop")
    assert "".join(output.outputs[0].delta for output in outputs) == last.text


# Streams


@pytest.mark.parametrize("n", [1, 3], ids=lambda n: f"n{n}")
def test_deltas_add_up_to_the_text(llm: LLM, n: int) -> None:
    outputs = list(llm.stream(TEXT, replace(WILD, n=n)))
    [whole] = llm.generate(TEXT, replace(WILD, n=n))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert len(outputs) == 40 * n
    for index in range(n):
        assert "".join(output.outputs[index].delta for output in outputs) == whole.outputs[index].text
        lengths = [len(output.outputs[index].token_ids) for output in outputs]
        assert lengths == sorted(lengths)
        assert all(whole.outputs[index].text.startswith(output.outputs[index].text) for output in outputs)
        assert outputs[-1].outputs[index].token_ids == whole.outputs[index].token_ids


@pytest.mark.parametrize("taken", [1, 2, 7], ids=lambda taken: f"after-{taken}")
def test_leaving_a_stream_early_aborts(llm: LLM, taken: int) -> None:
    before = llm.stats().step_tokens
    stream = llm.stream([9] * 20, replace(WILD, max_tokens=1500))
    for _, _ in zip(range(taken), stream, strict=False):
        pass
    stream.close()
    assert_idle(llm)
    assert llm.stats().step_tokens - before < 200, "it went on after nobody listened"


def test_a_stream_tells_an_error_at_its_first_step(llm: LLM) -> None:
    with pytest.raises(RequestError, match="ends at 1023"):
        next(llm.stream([5000], GREEDY))


# Aborts, at any moment


@pytest.mark.parametrize("n", [1, 2], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("tokens", [0, 1, 2, 5], ids=lambda tokens: f"after-{tokens}-tokens")
def test_an_abort_gives_what_there_is_and_leaves_the_neighbour_alone(llm: LLM, tokens: int, n: int) -> None:
    expected = llm.generate(TEXT, WILD)[0].outputs[0].token_ids
    engine, answers, neighbour = llm.engine, SimpleQueue(), SimpleQueue()
    with standing_still(engine):
        engine.submit(engine.check(TEXT, WILD), neighbour.put)
        name = engine.submit(engine.check([7] * 30, replace(WILD, n=n, max_tokens=500)), answers.put, stream=True)
        if not tokens:
            engine.abort(name)
    for _ in range(tokens * n):
        output = answers.get(timeout=PATIENCE_SECONDS)
    engine.abort(name)
    engine.abort(name)
    while not (output := answers.get(timeout=PATIENCE_SECONDS)).finished:
        pass
    assert {one.finish_reason for one in output.outputs} == {"abort"}
    assert tokens <= len(output.outputs[0].token_ids) < 500
    assert neighbour.get(timeout=PATIENCE_SECONDS).outputs[0].token_ids == expected
    assert_idle(llm)
    assert answers.empty(), "something was told after the end"


def test_an_abort_of_nothing_is_ignored(llm: LLM) -> None:
    llm.engine.abort("nobody")
    assert llm.generate(TEXT, GREEDY)[0].finished


# Threads, interrupts, the end


def test_threads_share_an_engine(llm: LLM) -> None:
    prompts = [[3 + i] * (5 + 7 * i) for i in range(6)]
    alone = [llm.generate(prompt, WILD)[0].outputs[0].token_ids for prompt in prompts]

    def ask(place: int) -> list[tuple[int, ...]]:
        if place % 2:
            return [list(llm.stream(prompts[place], WILD))[-1].outputs[0].token_ids for _ in range(3)]
        return [output.outputs[0].token_ids for output in llm.generate([prompts[place]] * 3, WILD)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6), timeout=PATIENCE_SECONDS))
    assert answers == [[tokens] * 3 for tokens in alone]


def test_an_interrupt_aborts_what_was_asked_and_the_engine_goes_on(llm: LLM) -> None:
    before, main = signal.signal(signal.SIGINT, signal.default_int_handler), threading.main_thread()
    steps = llm.stats().steps

    def interrupt() -> None:
        until(lambda: llm.stats().steps > steps + 3)
        signal.pthread_kill(main.ident, signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5] * 10, [6] * 10], replace(WILD, max_tokens=2000))
    finally:
        killer.join()
        signal.signal(signal.SIGINT, before)
    assert_idle(llm)
    assert len(llm.generate(TEXT, GREEDY)[0].outputs[0].token_ids) == 8


@pytest.mark.parametrize("platform", ["reference", "cpu"])
def test_closing_ends_whoever_waits(platform: str) -> None:
    llm = LLM(platform=platform, dtype="float32")
    begun, errors = threading.Semaphore(0), SimpleQueue()

    def generate() -> None:
        begun.release()
        llm.generate([[5] * 10] * 3, replace(WILD, max_tokens=2000))

    def stream() -> None:
        for _ in llm.stream([6] * 10, replace(WILD, max_tokens=2000)):
            begun.release()

    def attempt(what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:
            errors.put(error)

    threads = [threading.Thread(target=attempt, args=[what]) for what in (generate, stream, stream)]
    for thread in threads:
        thread.start()
    assert all(begun.acquire(timeout=PATIENCE_SECONDS) for _ in range(6))
    closers = [threading.Thread(target=llm.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in (*closers, *threads):
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "somebody waits for ever"
    for _ in threads:
        error = errors.get(timeout=PATIENCE_SECONDS)
        assert isinstance(error, EngineError) and "closed" in str(error)
    assert_closed(llm)


def assert_closed(llm: LLM) -> None:
    llm.close()
    llm.engine.abort("whatever")
    for call in (lambda: llm.generate([3]), llm.stats, lambda: next(llm.stream([3]))):
        with pytest.raises(EngineError, match="the engine is closed; make a new one"):
            call()


def test_a_stream_may_be_left_after_the_engine_was_closed(small_models: ModuleType) -> None:
    llm = small_models.random_llm("full", "cpu")
    stream = llm.stream([3], SamplingParams(max_tokens=90))
    next(stream)
    llm.close()
    stream.close()
    assert_closed(llm)


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("inferplane", "cpu-step"))}


def test_a_forgotten_engine_stops_its_threads(small_models: ModuleType) -> None:
    before = engine_threads()
    llm = small_models.random_llm("full", "cpu")
    llm.generate([3], SamplingParams())
    assert engine_threads() > before
    del llm
    assert until(lambda: engine_threads() <= before)


# Kernels that fail


PACK = '''
import gc
import numpy as np
from inferplane.ops import Kernel, KernelPack, Spec, always

def run(spec, tokens, weight):
    if (tokens == {poison}).any():
        raise ArithmeticError("this kernel cannot bear token {poison}")
    if (tokens == {collect}).any():
        gc.collect()
    return np.asarray(weight[0])[tokens]

pack = KernelPack("{platform}", [Kernel("embedding", "brittle", always, run, batch_invariant=True)])
'''
POISON, COLLECT = 13, 14


@pytest.fixture(params=["reference", "cpu"])
def brittle(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_models: ModuleType) -> Iterator[str]:
    """A platform with a third party's kernel, installed by a real entry point, that fails for one token."""
    source = PACK.format(poison=POISON, collect=COLLECT, platform=request.param)
    small_models.install(tmp_path, "brittle", "inferplane.kernels", f"{request.param}.brittle = brittle:pack", source)
    monkeypatch.syspath_prepend(tmp_path)
    yield request.param
    sys.modules.pop("brittle", None)


@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no-caching"])
def test_a_step_that_fails_ends_its_own_requests_only(brittle: str, small_models: ModuleType, caching: bool) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12, logit_bias={POISON: -1000.0}, n=2)
    settings = {"max_num_seqs": 2, "max_num_batched_tokens": 24, "enable_prefix_caching": caching}
    with small_models.random_llm("full-and-sliding", brittle, **settings) as llm:
        assert "brittle" in {choice.name for choice in llm.loaded.resolution}
        prompts = [list(range(20, 60)), list(range(20, 50))]
        expected = [[one.token_ids for one in llm.generate(prompt, params)[0].outputs] for prompt in prompts]
        engine, answers = llm.engine, [SimpleQueue() for _ in range(4)]
        with standing_still(engine):
            for queue, prompt in zip(answers, [[*prompts[0], POISON], prompts[0], [POISON], prompts[1]], strict=True):
                engine.submit(engine.check(prompt, params), queue.put)
        found = [queue.get(timeout=PATIENCE_SECONDS) for queue in answers]
        for place in (0, 2):
            assert isinstance(found[place], EngineError)
            assert f"ArithmeticError: this kernel cannot bear token {POISON}" in str(found[place])
            assert isinstance(found[place].__cause__, ArithmeticError)
        for place, answer in ((1, found[1]), (3, found[3])):
            if not isinstance(answer, EngineError):  # it shared no step with them
                assert [one.token_ids for one in answer.outputs] == expected[place // 2]
        assert not isinstance(found[3], EngineError), "the last one shared no step with them"
        assert_idle(llm)
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert [one.token_ids for one in llm.generate(prompt, params)[0].outputs] == tokens
        with pytest.raises(EngineError, match="cannot bear"):
            llm.generate([prompts[0], [POISON]], params)
        assert_idle(llm)


def test_blocks_that_a_failed_step_should_have_written_are_not_found(brittle: str, small_models: ModuleType) -> None:
    begin = list(range(20, 52))
    params = SamplingParams(temperature=0.0, max_tokens=6, logit_bias={POISON: -1000.0})
    with small_models.random_llm("full", brittle) as llm:
        with pytest.raises(EngineError):
            llm.generate([*begin, POISON], params)
        [after] = llm.generate([*begin, 5], params)
        assert after.metrics.kv.hit_tokens == 0
        with small_models.random_llm("full", "reference") as sane:
            assert after.outputs[0].token_ids == sane.generate([*begin, 5], params)[0].outputs[0].token_ids


def test_the_garbage_collector_may_find_a_forgotten_engine_on_its_own_step(brittle: str, small_models: ModuleType) -> None:
    before = engine_threads()
    params = SamplingParams(max_tokens=90, temperature=0.0, logit_bias={COLLECT: 1000.0})
    gc.disable()
    try:
        llm = small_models.random_llm("full", brittle)
        stream = llm.stream([COLLECT], params)
        next(stream)
        cycle = {"llm": llm, "stream": stream}
        cycle["cycle"] = cycle
        del llm, stream, cycle
        end = time.monotonic() + PATIENCE_SECONDS
        while engine_threads() - before and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        gc.enable()
    names = [thread.name for thread in engine_threads() - before]
    assert not [name for name in names if name.startswith("inferplane")]
