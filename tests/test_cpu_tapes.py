"""Steps that the cpu platform records: replayed, they do to the bit what they would do step by step."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.bench.shapes import RandomWeights
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.resolve import Resolution
from inferplane.ops import Batch, BatchShape, Dim, Packed, Rope, Sampled, Sampling, empty
from inferplane.platforms import registry
from inferplane.platforms.contract import Platform
from inferplane.platforms.cpu import rotary
from inferplane.platforms.cpu.rotary import rotary_table
from inferplane.platforms.cpu.tapes import MOST_TAPES, Tapes

native = pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")

DECODE = BatchShape(tokens=2, rows=2, samples=2, blocks=(4,), longest_query=1)


@pytest.fixture
def cpu() -> Iterator[Platform]:
    made = registry.named("cpu", threads=2)
    yield made
    made.close()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever a step is recorded."""
    found: list[Any] = []
    record = native.record

    def counted(pages: Any) -> Any:
        found.append(pages)
        return record(pages)

    monkeypatch.setattr(native, "record", counted)
    return found


def drawn(llm: LLM, params: SamplingParams, lengths: Sequence[int]) -> list[Any]:
    prompts = [{"prompt_token_ids": np.random.default_rng(length).integers(0, 400, length).tolist()} for length in lengths]
    found = [answer.outputs[0] for answer in llm.generate(prompts, params)]
    return [(one.token_ids, one.logprobs) for one in found]


PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=40, ignore_eos=True),
    "log-probabilities": SamplingParams(temperature=0.7, seed=5, max_tokens=20, logprobs=3, ignore_eos=True),
    "penalties": SamplingParams(temperature=0.7, seed=5, max_tokens=20, presence_penalty=0.5, ignore_eos=True),
}


@pytest.mark.parametrize("quantization", [None, "int8", "int4"], ids=str)
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_tokens_are_those_of_steps_that_are_not_recorded(
    params: SamplingParams, quantization: str | None, recordings: list[Any], monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LLM(platform="cpu", dtype="bfloat16", quantization=quantization, enable_prefix_caching=False) as llm:
        replayed = [drawn(llm, params, (5, 9, 30)) for _ in range(2)]
        count, platform = len(recordings), llm.loaded.platform
        monkeypatch.setattr(platform, "record", platform.compile)
        assert replayed == [drawn(llm, params, (5, 9, 30))] * 2
    assert (count > 0) == (not params.penalized) and len(recordings) == count
    assert count < 12, "a shape is recorded once, and not in every step"


def test_a_replayed_step_draws_by_the_parameters_of_its_own_batch(recordings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [PARAMS[name] for name in ("greedy", "drawn", "greedy")]
    with LLM(platform="cpu", enable_prefix_caching=False) as llm:
        first = drawn(llm, turns[0], (5, 9))
        count, platform = len(recordings), llm.loaded.platform
        replayed = [first, *(drawn(llm, params, (5, 9)) for params in turns[1:])]
        assert len(recordings) == count > 0
        monkeypatch.setattr(platform, "record", platform.compile)
        assert replayed == [drawn(llm, params, (5, 9)) for params in turns]
    assert replayed[0] != replayed[1]


def loaded_tiny(platform: Platform) -> Loaded:
    return load(RandomWeights.named("tiny"), platform, LoadOptions())


def decode(tokens: Sequence[int], position: int = 7) -> Packed:
    """A step of two rows, each a block of 16 tokens long."""
    packed, batch, sampling = empty(DECODE)
    batch.tokens[:], batch.source[:], batch.positions[:], batch.row[:] = tokens, -1, position, [0, 1]
    batch.starts[:], batch.lengths[:], batch.slot[:] = [0, 1, 2], position + 1, [1, 2]
    batch.sample[:], batch.sample_slot[:] = [0, 1], [1, 2]
    batch.groups[0].table[:, 0], batch.groups[0].slots[:] = [1, 2], [16 + position, 32 + position]
    sampling.top_p[:] = 1.0
    return packed


def test_what_a_step_answered_stays_when_the_next_one_runs(cpu: Platform, recordings: list[Any]) -> None:
    loaded = loaded_tiny(cpu)
    state = cpu.allocate(loaded.states, [3], slots=2)

    def submitted(*tokens: int) -> Any:
        return cpu.submit(loaded.compiled(DECODE), loaded.weights, state, decode(tokens))

    answers = [submitted(*tokens).result().tokens for tokens in ((1, 2), (3, 4), (5, 6))]
    pending = [submitted(*tokens) for tokens in ((1, 2), (3, 4), (5, 6))]
    assert [one.result().tokens.tolist() for one in pending] == [tokens.tolist() for tokens in answers]
    assert len({tuple(tokens) for tokens in answers}) == 3 and len(recordings) == 1


def test_another_state_and_other_weights_are_recorded_anew(cpu: Platform, recordings: list[Any]) -> None:
    loaded, other = loaded_tiny(cpu), loaded_tiny(cpu)
    for weights in (loaded.weights, other.weights):
        for _ in range(2):
            state = cpu.allocate(loaded.states, [3], slots=2)
            answer = cpu.submit(loaded.compiled(DECODE), weights, state, decode((1, 2))).result()
            assert state.last_token.tolist() == [0, *answer.tokens] and state[0].k[1].any()
    assert len(recordings) == 4


def test_shapes_that_come_no_more_are_forgotten(cpu: Platform, recordings: list[Any]) -> None:
    tapes, step = Tapes(), _turned(Rope(heads=Dim(1), head_dim=8, frequencies=(1.0,) * 4, dtype="float32"))
    for blocks in (*range(1, MOST_TAPES + 2), MOST_TAPES + 1, 1):
        run_at(tapes, step, [0], blocks)
    assert len(recordings) == MOST_TAPES + 2


def _turned(spec: Rope) -> Callable[..., Sampled]:
    """A step that answers ones, turned by each token's position."""
    def step(weights: Any, state: Any, batch: Batch, sampling: Sampling) -> Sampled:
        out = native.empty((len(batch.positions), 1, 8), np.float32)
        table, rows = rotary_table(spec, batch.positions)
        native.rope(np.ones(out.shape, np.float32), rows, table, False, out)
        return Sampled(out)

    return step


def run_at(tapes: Tapes, step: Any, positions: Sequence[int], blocks: int = 1) -> Any:
    rows = len(positions)
    packed, batch, _ = empty(BatchShape(rows, rows, rows, (blocks,), 1))
    batch.positions[:] = positions
    recorded = tapes.recorded(step, packed.shape)
    assert recorded is not None
    return recorded.run(None, None, packed).tokens


@pytest.mark.parametrize("most", [1 << 17, 100], ids=["table", "rows-of-a-step"])
def test_positions_beyond_those_of_the_recording_are_turned_by_their_own_angles(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "MOST_POSITIONS", most)
    tapes, step = Tapes(), _turned(Rope(heads=Dim(1), head_dim=8, frequencies=(1.0, 0.5, 0.25, 1 / most), dtype="float32"))
    for positions in ([3, 4], [150, 7], [9_000, 200], [5, 160]):
        made = run_at(tapes, step, positions)
        alone = [run_at(Tapes(), step, [position]) for position in positions]
        assert made.tobytes() == np.concatenate(alone).tobytes()


def test_an_error_in_a_recording_leaves_nothing_behind(recordings: list[Any]) -> None:
    tapes, spec = Tapes(), Rope(heads=Dim(1), head_dim=8, frequencies=(1.0,) * 4, dtype="float32")

    def failing(*arguments: Any) -> Sampled:
        raise RuntimeError("no such step")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such step"):
            run_at(tapes, failing, [1])
    first, second = (run_at(tapes, _turned(spec), [1]) for _ in range(2))
    assert first.tobytes() == second.tobytes() and len(recordings) == 4


def test_a_replay_checks_ids_again_and_reads_what_stands_in_the_arrays_now() -> None:
    table, rows = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([1, 3], np.int32)
    out = np.zeros((2, 3), np.float32)
    tape = native.record(native.tape_pages())
    try:
        native.take_rows(table, rows, out)
        with pytest.raises(ValueError, match="records already"):
            native.record(native.tape_pages())
    finally:
        native.stop_recording()
    rows[:] = [2, 0]
    native.replay(tape)
    assert out.tolist() == table[[2, 0]].tolist()
    rows[1] = 4
    with pytest.raises(ValueError, match="there are 4"):
        native.replay(tape)


def test_a_tape_keeps_its_arrays_and_lends_the_pages_of_results_that_are_gone() -> None:
    pages = native.tape_pages()
    tape = native.record(pages)
    try:
        ones = native.empty((1000,), np.float32)
        native.scale(np.full(1000, 2.0, np.float32), 0.5, ones)
        place = ones.ctypes.data
        total = native.empty((1000,), np.float32)
        native.add(ones, ones, total)
        del ones
        again = native.empty((1000,), np.float32)
        assert again.ctypes.data == place != total.ctypes.data
        native.add(total, total, again)
    finally:
        native.stop_recording()
    np.full(1000, 7.0, np.float32)  # where the two's would lie, had nobody kept them
    again[:], total[:] = 0, 0
    native.replay(tape)
    assert (again == 4).all() and (total == 2).all()


@pytest.mark.parametrize(
    "shape", [replace(DECODE, longest_query=2), replace(DECODE, edits=1), replace(DECODE, mask_words=4), BatchShape(65, 65, 65, (4,), 1)],
    ids=["prefill", "edits", "mask", "many-rows"],
)
def test_steps_that_look_at_numbers_or_are_large_are_not_recorded(cpu: Platform, shape: BatchShape, recordings: list[Any]) -> None:
    assert cpu.record(step := _turned(Rope(heads=Dim(1), head_dim=8, frequencies=(1.0,) * 4, dtype="float32")), shape) is step


def test_one_kernel_that_does_not_say_so_keeps_a_model_from_being_recorded(cpu: Platform) -> None:
    resolution = loaded_tiny(cpu).resolution
    assert resolution.replayable
    [norm] = [choice for choice in resolution if choice.spec.op == "rms_norm"]
    assert norm.kernel is not None
    silent = replace(norm, kernel=replace(norm.kernel, replayable=False))
    assert not Resolution({**resolution.choices, norm.spec: silent}, resolution.mesh).replayable


def test_recording_again_and_again_takes_no_more_memory() -> None:
    pages, places, tapes = native.tape_pages(), set(), []
    for width in (1, 700, 3, 30_000, 900) * 20:
        tapes.append(native.record(pages))
        try:
            places.add(native.empty((width,), np.float32).ctypes.data)
        finally:
            native.stop_recording()
    assert len(places) == 2


def test_a_tape_that_nobody_keeps_records_nothing() -> None:
    native.record(native.tape_pages())
    rows = native.empty((3,), np.float32)
    native.scale(np.ones(3, np.float32), 2.0, rows)
    assert rows.tolist() == [2.0, 2.0, 2.0]
