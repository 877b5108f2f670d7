"""gaudi without the chip: its constraints are enforced, its kernels keep them, graphs are counted, and tokens equal the reference's."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inferplane import LLM, SamplingParams, errors  # noqa: E402
from inferplane.conformance.case import Verdict  # noqa: E402
from inferplane.conformance.cases import find, quick_cases  # noqa: E402
from inferplane.conformance.rig import Rig  # noqa: E402
from inferplane.ops import BatchShape, Dim, Linear, Scheme, WriteKV, empty  # noqa: E402
from inferplane.platforms.contract import Options  # noqa: E402
from inferplane.platforms.gaudi import Gaudi, graphs, platform  # noqa: E402
from inferplane.platforms.gaudi.buckets import BUCKETS, MOST_GRAPHS  # noqa: E402

PROMPTS = ["The capital of France is", "Repeat after me: blue, green,"]
GREEDY = SamplingParams(max_tokens=10, temperature=0.0)
DRAWN = [SamplingParams(max_tokens=6, temperature=0.9, top_k=20, top_p=0.9, seed=3),
         SamplingParams(max_tokens=6, min_p=0.05, seed=4, repetition_penalty=1.3, logprobs=3)]
ONE = BatchShape(1, 1, 1, (1,), 1)


@pytest.fixture
def gaudi() -> Iterator[Gaudi]:
    opened = Gaudi(Options("emulated"))
    yield opened
    opened.close()


def run(gaudi: Gaudi, step: Callable[[Any], Any], shape: BatchShape = ONE, times: int = 1) -> Any:
    """What `step(x)` gives for x = [3.0, -1.0, 2.0, 0.0], run in a step of the platform."""
    packed, x, state = empty(shape)[0], gaudi.put(np.array([3, -1, 2, 0], np.float32)), gaudi.allocate([], [], slots=1)
    compiled = gaudi.compile(lambda weights, state, batch, sampling: step(weights), shape)
    return [gaudi.submit(compiled, x, state, packed).result() for _ in range(times)][-1]


def tokens(name: str, params: Any) -> list[Any]:
    llm = LLM("tiny", platform=name, dtype="float32")
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_embedded_model_gives_the_references_tokens_under_gaudis_constraints(params: Any) -> None:
    assert tokens("gaudi:emulated", params) == tokens("reference", params)


class TestTheConstraints:
    @pytest.mark.parametrize(("step", "told"), [
        pytest.param(lambda x: x.nonzero(), "aten.nonzero .* use torch.where with three", id="nonzero"),
        pytest.param(lambda x: torch.where(x > 0)[0], "aten.nonzero", id="where with one argument"),
        pytest.param(lambda x: x.masked_select(x > 0), "aten.masked_select .* use masked_fill", id="masked_select"),
        pytest.param(lambda x: x[x > 0], "aten.index .* as many elements as are true", id="boolean index"),
        pytest.param(lambda x: x.clone().index_put_((x > 0,), torch.zeros(())), "aten.index_put_", id="boolean index_put"),
        pytest.param(lambda x: x.unique(), "unique.* sort, and compare", id="unique"),
        pytest.param(lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1])), "aten.repeat_interleave .* as a number", id="repeats"),
        pytest.param(lambda x: torch.bincount(x.int().clamp(min=0)), "aten.bincount .* a size that the shapes say", id="bincount"),
    ])
    def test_a_size_that_depends_on_data_raises(self, gaudi: Gaudi, step: Any, told: str) -> None:
        with pytest.raises(errors.SpecError, match=told):
            run(gaudi, step)

    @pytest.mark.parametrize("step", [
        pytest.param(lambda x: x * x[0].item(), id="item"),
        pytest.param(lambda x: x if x[0] > 0 else -x, id="bool"),
        pytest.param(lambda x: x + x.tolist()[1], id="tolist"),
        pytest.param(lambda x: x.cpu(), id="cpu"),
        pytest.param(lambda x: x.to("cpu"), id="to"),
        pytest.param(lambda x: x + float(x.numpy()[0]), id="numpy"),
        pytest.param(lambda x: x + np.asarray(x)[0].item(), id="asarray"),
        pytest.param(lambda x: x[: int(x[0])], id="int"),
        pytest.param(lambda x: x if torch.equal(x, x) else -x, id="equal"),
    ])
    def test_a_read_by_the_host_raises(self, gaudi: Gaudi, step: Any) -> None:
        with pytest.raises(errors.SpecError, match="makes the host wait for the chip inside a step; keep the value on the device"):
            run(gaudi, step)

    @pytest.mark.parametrize(("step", "told"), [
        (lambda x: x.double(), "torch.float64, which Gaudi has not; use float32"),
        (lambda x: x.long() << 40, "Gaudi keeps 32 bits"),
    ], ids=["float64", "int64"])
    def test_numbers_of_64_bits_raise(self, gaudi: Gaudi, step: Any, told: str) -> None:
        with pytest.raises(errors.SpecError, match=told):
            run(gaudi, step)

    def test_the_error_names_the_line(self, gaudi: Gaudi) -> None:
        with pytest.raises(errors.SpecError, match=r"tests/test_gaudi.py:\d+"):
            run(gaudi, lambda x: x.nonzero())

    def test_what_is_static_passes(self, gaudi: Gaudi) -> None:
        def step(x: Any) -> Any:
            order = x.sort(descending=True).indices
            return torch.where(x > 0, x, 0).repeat_interleave(2) + x.index_select(0, order).repeat_interleave(2).clamp(max=1)

        assert run(gaudi, step, times=4).tolist() == [4.0, 4.0, 1.0, 1.0, 2.0, 2.0, -1.0, -1.0]

    def test_outside_steps_nothing_is_refused(self, gaudi: Gaudi) -> None:
        placed = gaudi.put(np.arange(3.0))
        assert placed.double().tolist() == [0, 1, 2]

    def test_a_step_of_one_shape_is_one_program(self, gaudi: Gaudi) -> None:
        calls: list[int] = []

        def wavering(x: Any) -> Any:
            calls.append(1)
            return x + 1 if len(calls) < 3 else x * 2

        with pytest.raises(errors.SpecError, match=r"its op \d+ was aten.add .* and is aten.mul"):
            run(gaudi, wavering, times=3)


class TestTheBuckets:
    @pytest.mark.parametrize("shape", [
        BatchShape(3, 4, 4, (1,), 1), BatchShape(4, 4, 4, (3,), 1), BatchShape(8, 4, 4, (4,), 4), BatchShape(4, 2, 4, (4,), 1),
    ], ids=["tokens", "blocks", "longest", "apart"])
    def test_a_shape_outside_them_is_refused_and_the_right_one_is_told(self, gaudi: Gaudi, shape: BatchShape) -> None:
        with pytest.raises(errors.SpecError, match="Pad it to BatchShape") as told:
            gaudi.compile(lambda *arguments: (), shape)
        assert str(BUCKETS.pad(shape)) in str(told.value)
        gaudi.compile(lambda *arguments: (), BUCKETS.pad(shape))

    def test_sizes_that_go_together_are_padded_together(self) -> None:
        assert BUCKETS.pad(BatchShape(3, 3, 2, (5,), 1)) == BatchShape(4, 4, 4, (16,), 1)
        assert BUCKETS.pad(BatchShape(300, 3, 1, (20,), 290)) == BatchShape(512, 4, 4, (64,), 512)

    def test_a_busy_servers_shapes_are_fewer_than_the_bound(self) -> None:
        """Every mix of up to 128 rows, with and without a prompt beside them, up to 2,048 tokens."""
        seen = {
            BUCKETS.pad(BatchShape(rows + more, rows, rows, (blocks,), 1 + more))
            for rows in range(1, 129) for more in (0, 1, 30, 100, 700, 1900) for blocks in (1, 3, 10, 50, 200, 900)
        }
        assert len(seen) <= MOST_GRAPHS

    def test_one_graph_too_many_is_refused(self, gaudi: Gaudi) -> None:
        def step(*arguments: Any) -> Any:
            return ()

        shapes = [BatchShape(1, 1, 1, (1,), 1, logprobs=count) for count in range(MOST_GRAPHS + 1)]
        for shape in shapes[:-1]:
            gaudi.compile(step, shape)
        gaudi.compile(step, shapes[0])
        assert gaudi.graphs.compiled == MOST_GRAPHS
        with pytest.raises(errors.CapacityError, match="compiled for 512 shapes, and .* is another"):
            gaudi.compile(step, shapes[-1])

    def test_an_engine_compiles_few_graphs(self) -> None:
        llm = LLM("tiny", platform="gaudi:emulated", dtype="float32")
        llm.generate(PROMPTS * 3, SamplingParams(max_tokens=12, temperature=0.0))
        opened: Any = llm.engine.runner.platform
        assert 2 <= opened.graphs.compiled <= 8


@pytest.mark.parametrize("family", ["attention.", "experts.", "sample.", "linear.int8"])
def test_kernels_are_right_on_padded_steps(family: str) -> None:
    rig = Rig(Gaudi(Options("emulated")))
    chosen = [case for case in quick_cases() if case.address.family.startswith(family)][:6]
    for case in chosen:
        outcome = find(case.id).run(rig)
        assert outcome.verdict in (Verdict.PASS, Verdict.UNSUPPORTED), f"{case.id}: {outcome.detail}"
    rig.platform.close()


@pytest.mark.parametrize("spec", [
    WriteKV(kv_heads=Dim(2), key_dim=8, value_dim=8, dtype="float32", kv_dtype="float8_e4m3fn"),
    Linear(input=Dim(8), outputs=(Dim(8),), dtype="float32", scheme=Scheme("float8_e4m3fn")),
], ids=["cell", "weight"])
def test_float8_codes_are_refused_for_their_range(gaudi: Gaudi, spec: Any) -> None:
    answers = [kernel.supports(spec) or "" for kernel in gaudi.kernels() if kernel.op == spec.op]
    assert all(answers)
    assert any("Gaudi 2's end at 240" in answer for answer in answers)


class TestTheProbe:
    def test_without_a_chip_it_tells_what_was_looked_for_and_of_the_emulation(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "glob", lambda pattern: [])
        found = Gaudi.probe(Options())
        assert not found.usable
        assert "/dev/hl" in found.reason
        assert "gaudi:emulated" in found.remedy

    def test_a_chip_needs_habana_frameworks(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(platform, "glob", lambda pattern: ["/dev/accel/accel0"])
        monkeypatch.setattr(platform, "find_spec", lambda name: None if name.startswith("habana") else object())
        assert Gaudi.probe(Options()).reason == "found Intel Gaudi (/dev/accel/accel0), Python lacks habana_frameworks"
        assert "not on PyPI" in Gaudi.probe(Options()).remedy
        assert Gaudi.probe(Options("emulated")).usable

    @pytest.mark.parametrize("options", [Options("1"), Options("emulated", None, {"lazy": "1"})], ids=["number", "pair"])
    def test_options_that_mean_nothing_raise(self, options: Options) -> None:
        with pytest.raises(errors.ConfigError, match="HABANA_VISIBLE_DEVICES"):
            Gaudi(options)


def test_a_step_is_recorded_once_and_replayed_on_the_inputs_of_each_call(monkeypatch: Any) -> None:
    """Against a stand-in for Intel's module, whose graph runs the recorded work again: the order of calls, not the chip."""
    calls: list[str] = []

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    @contextmanager
    def graph(_: Any) -> Iterator[None]:
        calls.append("record")
        yield

    modules = {"core": SimpleNamespace(mark_step=lambda: calls.append("mark_step")),
               "hpu": SimpleNamespace(HPUGraph=Graph, graph=graph, synchronize=lambda: calls.append("synchronize"))}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"habana_frameworks.torch.{name}", module)
    seen = []
    step = graphs.HpuGraphs().captured(lambda weights, state, integers, floats: seen.append(integers) or integers)
    weights, state, floats = object(), object(), torch.zeros(1)
    first = step(weights, state, torch.tensor([7]), floats)
    second = step(weights, state, torch.tensor([8]), floats)
    assert calls == ["mark_step", "synchronize", "record", "replay", "replay"]
    assert first is second
    assert second.tolist() == [8]
    step(weights, object(), torch.tensor([9]), floats)
    assert calls.count("record") == 2
