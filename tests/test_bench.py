"""A shape is the model it names, the roofline is plain arithmetic, and the command says what it measured."""
from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inferplane.bench import throughput
from inferplane.bench.report import show
from inferplane.bench.roofline import COMPUTE, MEMORY, Cost, bound, cost
from inferplane.bench.run import Plan, run_throughput
from inferplane.bench.shapes import SHAPES, SPREAD, RandomWeights
from inferplane.bench.sweep import draw, roofline, sweep_works
from inferplane.bench.work import WORKS, Work, parse_works
from inferplane.cli import main
from inferplane.conformance.limits import Limits, measure_limits, typical
from inferplane.core.llm import LLM
from inferplane.core.models import model_class
from inferplane.core.quantization import choose_precision
from inferplane.errors import ConfigError
from inferplane.model_zoo.base import UNQUANTIZED
from inferplane.platforms import registry
from inferplane.platforms.contract import Capabilities, Options
from inferplane.platforms.reference import Reference
from rich.console import Console

MACHINE = Limits("test", 35e9, {"bfloat16": 960e9})


def cost_of(shape: str, dtype: str = "bfloat16", quantization: str | None = None) -> Cost:
    config, precision = SHAPES[shape], choose_precision(quantization, UNQUANTIZED)
    return cost(model_class(config["model_type"])(config, dtype=dtype, block_tokens=16, precision=precision))


# Shapes

@pytest.mark.parametrize(("shape", "millions"), [
    ("llama-1b", 1235.8), ("llama-8b", 8030.3), ("qwen2.5-0.5b", 494.0), ("qwen3-0.6b", 596.05),
])
def test_a_shape_has_as_many_parameters_as_the_model_it_names(shape: str, millions: float) -> None:
    assert RandomWeights.named(shape).parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_weights_are_finite_seeded_and_small(shape: str) -> None:
    source = RandomWeights.named(shape, seed=3)
    name = "model.layers.1.self_attn.q_proj.weight"
    made = source.tensor(name)
    assert made.dtype == ml_dtypes.bfloat16
    assert made.shape == source.tensors[name].shape
    assert np.isfinite(made).all()
    assert made.astype(np.float32).std() == pytest.approx(SPREAD, rel=0.05)
    assert np.array_equal(made, RandomWeights.named(shape, seed=3).tensor(name))
    assert not np.array_equal(made, RandomWeights.named(shape, seed=4).tensor(name))
    assert not np.array_equal(made, source.tensor(name.replace("layers.1", "layers.0")))


def test_no_two_rows_of_a_random_weight_are_equal() -> None:
    rows = RandomWeights.named("qwen2.5-0.5b").tensor("model.embed_tokens.weight")[:, :8]
    assert len(np.unique(rows.view(np.int16), axis=0)) == len(rows)


def test_norms_leave_activations_at_their_size() -> None:
    assert (RandomWeights.named("tiny").tensor("model.norm.weight") == 1).all()


# Work

def test_named_work_is_the_published_one() -> None:
    assert {name: (w.prompt_tokens, w.output_tokens, w.requests) for name, w in WORKS.items()} == {
        "decode1": (16, 64, 1), "prefill1k": (1024, 1, 1), "batch16": (128, 64, 16), "batch48": (128, 64, 48),
        "nano-vllm": (1024, 1024, 256),
    }


def test_the_lengths_of_nano_vllm_are_those_of_its_benchmark() -> None:
    work = WORKS["nano-vllm"]
    assert (sum(work.prompt_lengths), sum(work.output_lengths), work.counted_tokens) == (142_827, 133_966, 133_966)
    assert [len(ids) for ids in work.prompts(50, np.random.default_rng(0))] == list(work.prompt_lengths)
    assert [one.max_tokens for one in work.params()] == list(work.output_lengths)
    assert {one.max_tokens for one in work.params(4)} == {4}


def test_a_spread_work_is_bounded_by_the_requests_that_still_run() -> None:
    """On a machine where a step's time is that of its tokens: each token of prompts and answers is computed once, but for the last."""
    needs, limits = Cost("bfloat16", 1, 1, {"bfloat16": 10}, {"bfloat16": 0}), Limits("test", 1e15, {"bfloat16": 1e3})
    work = Work("spread", 40, 30, 5, least_tokens=3)
    found = bound(work, needs, limits)
    computed = sum(work.prompt_lengths) + sum(work.output_lengths) - work.requests
    assert found is not None
    assert found.tokens_per_second == pytest.approx(sum(work.output_lengths) / (computed * 10 / 1e3))


def test_work_can_be_spelled_in_numbers() -> None:
    assert list(parse_works("decode1, 8:4:2")) == [WORKS["decode1"], Work("8:4:2", 8, 4, 2)]


@pytest.mark.parametrize("text", ["decode", "", "8:4", "8:0:2", "8:4:-2", "8:4:2:1", "a:b:c"])
def test_unknown_work_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(ConfigError, match=r"decode1.*prefill1k.*PROMPT:OUTPUT:REQUESTS"):
        parse_works(text)


def test_tokens_counted_are_those_of_the_prompt_where_one_is_drawn() -> None:
    counted = [(WORKS[name].counted, WORKS[name].counted_tokens) for name in ("prefill1k", "batch48")]
    assert counted == [("prompt", 1024), ("output", 48 * 64)]


# Roofline

def test_a_llama_1b_step_reads_two_and_a_half_gigabytes_and_a_prompt_token_costs_two_gigaflop() -> None:
    needs = cost_of("llama-1b")
    assert needs.weight_bytes == 2_471_628_800
    head, last_layer = 2 * 2048 * 128256, 2 * 2048 * (2048 + 3 * 8192)
    assert (needs.token_flops["bfloat16"] + last_layer) / 1e9 == pytest.approx(1.946, abs=0.001)
    assert needs.sample_flops == {"bfloat16": head + last_layer}
    assert cost_of("llama-1b", "float32").weight_bytes == 2 * needs.weight_bytes


def test_a_head_of_its_own_leaves_the_embedding_unread() -> None:
    config = SHAPES["tiny"] | {"tie_word_embeddings": False}
    untied = cost(model_class("llama")(config, dtype="bfloat16", block_tokens=16))
    assert untied.weight_bytes == cost_of("tiny").weight_bytes
    assert untied.parameters == cost_of("tiny").parameters + 512 * 64


def test_one_stream_is_bounded_by_reading_the_weights() -> None:
    found = bound(WORKS["decode1"], cost_of("llama-1b"), MACHINE)
    assert found is not None
    assert found.by == MEMORY
    assert found.tokens_per_second == pytest.approx(35e9 / 2_471_628_800)


@pytest.mark.parametrize(("work", "tokens_per_second"), [("prefill1k", 522.4), ("batch16", 122.2), ("batch48", 156.9)])
def test_many_tokens_are_bounded_by_computing_them_but_for_the_last_layer_of_most(work: str, tokens_per_second: float) -> None:
    found = bound(WORKS[work], cost_of("llama-1b"), MACHINE)
    assert found is not None
    assert found.tokens_per_second == pytest.approx(tokens_per_second, rel=0.001)
    assert found.by == (MEMORY if work == "batch16" else COMPUTE)


@pytest.mark.parametrize(("scheme", "bits", "multiplied"), [
    ("int8:a8", 8 + 32 / 2048, "int8"), ("int4:g32:float16", 4 + 16 / 32, "bfloat16"), ("int4:g64:zeros:a8", 4 + 40 / 64, "int8"),
])
def test_quantized_weights_are_codes_with_scales_and_zero_points(scheme: str, bits: float, multiplied: str) -> None:
    plain, quantized = cost_of("llama-1b"), cost_of("llama-1b", quantization=scheme)
    norms = 2 * (2 * 16 + 1) * 2048
    down = 16 * 2048 * 8192 * (32 / 2048 - 32 / 8192) / 8 if scheme == "int8:a8" else 0
    assert quantized.weight_bytes == (plain.weight_bytes - norms) * bits / 16 + norms - down
    assert quantized.token_flops == {multiplied: plain.token_flops["bfloat16"]}
    assert quantized.sample_flops == {multiplied: plain.sample_flops["bfloat16"]}


def test_quantized_products_are_held_against_their_own_peak() -> None:
    limits = Limits("test", 35e9, {"bfloat16": 960e9, "int8": 1920e9})
    found = bound(WORKS["prefill1k"], cost_of("llama-1b", quantization="int8:a8"), limits)
    assert found is not None
    assert found.tokens_per_second == pytest.approx(1044.8, rel=0.01)


def test_what_nobody_measured_bounds_nothing() -> None:
    needs = cost_of("llama-1b")
    assert bound(WORKS["decode1"], needs, Limits("none")) is None
    only_memory = bound(WORKS["prefill1k"], needs, Limits("numpy", 35e9))
    assert only_memory is not None
    assert only_memory.tokens_per_second == pytest.approx(1024 * 35e9 / needs.weight_bytes)


def test_a_typical_limit_is_the_median() -> None:
    measured = [Limits("x", rate, {"float32": 10 * rate}) for rate in (1.0, 9.0, 2.0)]
    assert typical(measured) == Limits("x", 2.0, {"float32": 20.0})


def test_a_platform_may_measure_its_own_device() -> None:
    class Device(Reference):
        def measure_limits(self) -> dict[str, float]:
            return {"read_bytes_per_second": 4e12, "bfloat16_flops": 8e14, "int8_ops": 16e14}

    device = Device(Options())
    assert measure_limits(device) == Limits("reference", 4e12, {"bfloat16": 8e14, "int8": 16e14})
    device.close()


def test_memory_of_the_host_says_nothing_about_another_device() -> None:
    platform = registry.named("reference")
    assert measure_limits(platform).read_bytes_per_second is not None
    platform.capabilities = Capabilities(dtypes=("float32",), devices=("elsewhere:0",))
    assert measure_limits(platform) == Limits("none")
    platform.close()


# The command

KEYS = {
    "format", "kind", "date", "machine", "versions", "model", "platform", "settings", "repeats", "load_seconds", "limits",
    "results", "peak_bytes",
}


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["bench", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_throughput_of_a_shape_is_a_full_record(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    record = measured(capsys, "throughput", "--shape", "tiny", "--platform", "reference", "--work", "8:4:2,6:1:1",
                      "--repeats", "2", "--output", str(kept))
    assert set(record) == KEYS
    assert json.loads(kept.read_text()) == record
    assert record["machine"]["cores"] >= 1
    assert record["model"]["parameters"] == RandomWeights.named("tiny").parameters
    assert record["platform"]["name"] == "reference"
    assert sys.platform != "linux" or record["peak_bytes"] > 1e7
    batch, prompt = record["results"]
    assert (batch["counted"], prompt["counted"]) == ("output", "prompt")
    for one in (batch, prompt):
        assert 0 < one["slowest"] <= one["tokens_per_second"] <= one["fastest"]
        assert 0 < one["of_limit"] < 1 and one["limit_tokens_per_second"] > one["fastest"]
        assert 0 < one["host_percent"] < 100
        assert one["cores_used"] > 0
        assert len(one["runs"]) == 2
    computed = [run["step_tokens"] for run in batch["runs"]]
    assert computed == [2 * (8 + 3)] * 2, "every repeat computes the same tokens, and no prefix is reused"


def test_each_run_is_held_against_the_limits_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter((1e9, 3e9, 1e9, 5e9))
    seconds = iter((2.0, 4.0, 3.0))
    monkeypatch.setattr(throughput, "measure_limits", lambda platform: Limits("test", next(reads)))
    monkeypatch.setattr(throughput, "_run", lambda *anything: throughput.Run(next(seconds), 1.0, 4, 22, 0.1))
    with LLM(source=RandomWeights.named("tiny"), platform="reference") as llm:
        found = throughput.measure_throughput(llm, parse_works("8:4:2")[0], 3, np.random.default_rng(0), lambda done: None)
        read = 4 * cost(llm.loaded.model).weight_bytes
    fractions = [read / 2e9 / 2.0, read / 2e9 / 4.0, read / 3e9 / 3.0]
    assert found.of_limit == pytest.approx(sorted(fractions)[1])


def test_latency_of_the_embedded_model_has_percentiles_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(capsys, "latency", "--platform", "reference", "--work", "8:4:2,6:1:1", "--repeats", "3")
    assert set(record) == KEYS
    batch, prompt = record["results"]
    assert (batch["requests"], prompt["requests"]) == (6, 3)
    assert prompt["between_tokens_ms"] is None
    for times in (batch["first_token_ms"], batch["between_tokens_ms"], batch["end_to_end_ms"], prompt["end_to_end_ms"]):
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert batch["first_token_ms"]["p50"] < batch["end_to_end_ms"]["p50"]


def test_the_table_shows_the_record_that_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(capsys, "throughput", "--shape", "tiny", "--platform", "reference", "--work", "4:2:1", "--repeats", "1")
    console = Console(width=80, record=True, file=io.StringIO())
    show(record, console)
    text = console.export_text()
    assert "random weights" in text
    assert f"{record['results'][0]['tokens_per_second']:,.1f} output" in text


def test_a_sweep_measures_more_and_more_requests_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    assert main(["bench", "sweep", "--shape", "tiny", "--platform", "reference", "--concurrency", "3,1", "--prompt-tokens", "6",
                 "--output-tokens", "4", "--quantization", "int8", "--repeats", "1", "--json", str(kept)]) == 0
    assert "bfloat16 and int8" in capsys.readouterr().out
    record = json.loads(kept.read_text())
    assert set(record) == KEYS
    assert record["kind"] == "sweep"
    assert [one["work"]["requests"] for one in record["results"]] == [1, 3]
    curve = roofline(record)
    assert curve is not None
    assert [count for count, _ in curve] == [1, 2, 3]
    assert curve[0][1] < curve[1][1] < curve[2][1]
    assert record["model"]["token_flops"].keys() == {"int8"}


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_sweep_is_drawn_with_its_roofline(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plan = Plan(sweep_works("1,2", 4, 2), repeats=1, shape="tiny", settings={"platform": "reference"})
    picture = tmp_path / f"sweep.{kind}"
    draw(run_throughput(plan, kind="sweep"), picture)
    assert picture.stat().st_size > 5_000


def test_a_plot_without_matplotlib_says_what_to_install(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "sweep", "--shape", "tiny", "--platform", "reference", "--plot", str(tmp_path / "sweep.svg")]) == 1
    assert "pip install 'inferplane[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "told"), [
    (["--concurrency", "1,x"], "concurrency '1,x' is not a list of numbers"),
    (["--concurrency", "0"], "concurrency '0' is not a list of numbers"),
    (["--output-tokens", "1"], "A sweep needs 1 in and 2 out at least"),
    (["--plot", "sweep.jpeg"], "End its name in .svg or .png"),
    (["--json", "/no/such/folder/file.json"], "--json /no/such/folder/file.json cannot be written"),
], ids=["word", "zero", "output", "plot", "json"])
def test_a_sweep_that_cannot_be_is_refused_at_once(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", "--shape", "tiny", "--platform", "reference", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "told"), [
    (["--shape", "llama1b"], "shape 'llama1b' is unknown. Did you mean 'llama-1b'?"),
    (["--work", "decode"], "work 'decode' is unknown. Did you mean 'decode1'?"),
    (["--repeats", "0"], "repeats must be at least 1; found 0"),
    (["--shape", "tiny", "--model", "org/name"], "both a model, 'org/name', and a shape, 'tiny'"),
    (["--output", "/no/such/folder/file.json"], "its folder does not exist"),
], ids=["shape", "work", "repeats", "two models", "output"])
def test_bad_input_gives_one_clear_message(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", "--platform", "reference", *arguments]) == 1
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.startswith("inferplane: ")
    assert "Traceback" not in said.err
    assert not said.out


def test_a_record_names_no_path(tmp_path: Path) -> None:
    from inferplane.core.hub import TINY

    record = run_throughput(Plan(parse_works("4:2:1"), repeats=1, settings={"model": str(TINY), "platform": "reference"}))
    assert record["model"]["name"] == TINY.name
    assert str(TINY.parent) not in json.dumps(record)
