"""The platform tpu on the CPU: its names, one device and a mesh of several, warm-up, and steps compiled for chips that are not there."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from inferplane.bench.ahead import Compiled, work
from inferplane.bench.shapes import SHAPES
from inferplane.bench.step import Needs, Row, least_time, needs
from inferplane.cli import main
from inferplane.conformance.models import RandomSource
from inferplane.core.abstract import AbstractWeights
from inferplane.core.kv.layout import Shape
from inferplane.core.loader import LoadOptions, load
from inferplane.core.localize import Mesh, require_alike, split_blocks
from inferplane.core.models import model_class
from inferplane.core.quantization import choose_precision
from inferplane.core.runner import Runner
from inferplane.core.trace import trace
from inferplane.core.warm_up import likely, warm_up
from inferplane.errors import ConfigError
from inferplane.model_zoo.base import UNQUANTIZED, Model
from inferplane.ops import Attention, BatchShape, Dim, Quantized
from inferplane.platforms.contract import Buckets, Chip, Options, StepCode, World
from inferplane.platforms.reference import Reference
from inferplane.platforms.tpu import Tpu
from inferplane.platforms.tpu.chips import CHIPS, TARGETS

Python = Callable[[str], Any]
SMALL = Buckets(tokens=(4, 16), rows=(2, 4), samples=(2, 4), blocks=(1, 4))
LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """python(code): what a fresh interpreter prints last, as JSON. How many devices JAX has is settled once in a process."""
    def run(code: str) -> Any:
        variables = {**os.environ, "INFERPLANE_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=540, env=variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def model_of(name: str, **changes: Any) -> Model:
    config = {**SHAPES[name], **changes}
    return model_class(config["model_type"])(config, dtype="bfloat16", block_tokens=32)


# Names


def test_a_probe_says_what_a_tpu_would_need_and_imports_no_jax(python: Python) -> None:
    said = python("""
        import json, sys
        from inferplane.platforms.contract import Options
        from inferplane.platforms.tpu import Tpu
        found = Tpu.probe(Options())
        print(json.dumps([found.reason, "tpu:interpreted" in found.remedy or found.usable, "jax" in sys.modules]))
    """)
    assert "TPU" in said[0]
    assert said[1:] == [True, False]


@pytest.mark.parametrize("options", [
    Options("nonsense"), Options(extra={"devices": "2"}), Options("interpreted", extra={"cores": "2"}),
    Options("interpreted", extra={"devices": "0"}), Options("interpreted", extra={"copies": "never"}), Options(extra={"copies": "plain"}),
], ids=["word", "devices-of-chips", "unknown-key", "no-device", "unknown-copies", "copies-of-chips"])
def test_an_option_that_means_nothing_is_refused(options: Options) -> None:
    pytest.importorskip("jax")
    with pytest.raises(ConfigError, match="platform tpu"):
        Tpu(options)


def test_a_device_that_jax_does_not_have_is_refused_with_the_way_to_have_it() -> None:
    pytest.importorskip("jax")
    with pytest.raises(ConfigError, match="asked for device 1000, .* Name tpu:interpreted,devices=1001"):
        Tpu(Options("interpreted", rank=1000))


# The same tokens


@pytest.mark.slow
def test_the_embedded_model_gives_the_tokens_of_the_reference(python: Python) -> None:
    pytest.importorskip("jax")
    ours, wanted = python("""
        import json
        from inferplane import LLM, SamplingParams
        found = []
        for platform in ("tpu:interpreted", "reference"):
            with LLM(platform=platform, dtype="float32", max_num_batched_tokens=32, max_num_seqs=2, max_model_len=64) as llm:
                [answer] = llm.generate("The code for lamp is", SamplingParams(temperature=0.0, max_tokens=6))
                found.append([answer.outputs[0].token_ids, llm.loaded.platform.capabilities.grade])
        print(json.dumps(found))
    """)
    assert ours[0] == wanted[0]
    assert ours[1] == "interpreted"


@pytest.mark.slow
def test_two_and_eight_devices_of_one_process_give_the_tokens_and_the_blocks_of_one(python: Python) -> None:
    pytest.importorskip("jax")
    found = python(f"""
        import json
        import numpy as np
        from inferplane.conformance.models import RandomSource, greedy
        from inferplane.core.loader import LoadOptions, load
        from inferplane.core.runner import Runner
        from inferplane.platforms.contract import Options, World
        from inferplane.platforms.tpu import Tpu
        answers = {{}}
        for count in (1, 2, 8):
            platform, world = Tpu(Options("interpreted", extra={{"devices": "8"}})), World(size=count, one_process=count > 1)
            collectives = platform.collectives(world) if count > 1 else None
            options = LoadOptions(dtype="float32", max_model_len=64, block_tokens=8)
            loaded = load(RandomSource({LLAMA!r}), platform, options, world=world, collectives=collectives)
            runner = Runner(loaded, blocks=[5], slots=2)
            [group] = loaded.model.states
            random = np.random.default_rng(0)
            arrays = {{name: random.normal(size=(2, one.heads, 16, one.dim)).astype(np.float32) for name, one in group.arrays.items()}}
            runner.write_blocks(0, [3, 1], arrays)
            back = runner.read_blocks(0, [3, 1])
            same = all(np.array_equal(back[name], arrays[name]) for name in arrays)
            answers[count] = [greedy(loaded, range(3, 20), 6).tolist(), same, len(loaded.weights.top["head"][0].sharding.device_set)]
        print(json.dumps(answers))
    """)
    assert found["1"][0] == found["2"][0] == found["8"][0]
    assert len(set(found["1"][0])) > 1, "a model that repeats itself shows nothing"
    assert [found[count][1:] for count in ("1", "2", "8")] == [[True, 1], [True, 2], [True, 8]]


def test_devices_of_one_process_must_run_one_program() -> None:
    heads, kv_heads, slopes = Dim(4, "heads"), Dim(4, "kv_heads"), (0.5, 0.25, 0.125, 0.0625)
    spec = Attention(heads=heads, kv_heads=kv_heads, key_dim=8, value_dim=8, scale=1.0, dtype="float32", alibi=slopes)
    ways = {"heads": 2, "kv_heads": 2}
    with pytest.raises(ConfigError, match="one program"):
        require_alike([spec], Mesh(ways, 0, 2), Mesh(ways, 1, 2))
    require_alike([replace(spec, alibi=None)], Mesh(ways, 0, 2), Mesh(ways, 1, 2))


def test_blocks_of_all_devices_are_parted_in_the_order_of_ranks() -> None:
    array = np.arange(2 * 6 * 3 * 1).reshape(2, 6, 3, 1)
    first, second, third = split_blocks({"k": array}, 3)
    np.testing.assert_array_equal(np.concatenate([part["k"] for part in (first, second, third)], axis=1), array)
    assert first["k"].shape == (2, 2, 3, 1)


# Warm-up


class Bucketed(Reference):
    capabilities = replace(Reference.capabilities, block_tokens=(4,), buckets=SMALL)


def test_likely_shapes_are_padded_ones_and_reach_the_limits() -> None:
    groups = model_of("tiny").states
    shapes = list(likely(SMALL, groups, Shape(sequences=4, length_tokens=128, step_tokens=40)))
    assert all(SMALL.pad(shape) == shape for shape in shapes)
    assert {shape.tokens for shape in shapes if shape.longest_query > 1} == {4, 16, 48}
    assert {(shape.rows, shape.blocks) for shape in shapes if shape.longest_query == 1} == {(2, (1,)), (2, (4,)), (4, (1,)), (4, (4,))}


def test_a_warm_engine_compiles_nothing_for_a_likely_step() -> None:
    loaded = load(RandomSource(LLAMA), Bucketed(Options()), LoadOptions(dtype="float32", max_model_len=64))
    runner = Runner(loaded, blocks=[17], slots=4)
    told: list[str] = []
    seconds = warm_up(runner, Shape(sequences=4, length_tokens=64, step_tokens=16), lambda what, done, total: told.append(what))
    assert set(runner._compiled) == set(seconds)
    assert BatchShape(4, 4, 4, (4,), 1) in seconds
    assert all(time > 0 for time in seconds.values())
    assert "compiling decoding of 4 rows, 4 blocks of context" in told


def test_warm_up_is_bounded_and_does_nothing_where_no_shape_is_compiled() -> None:
    source, options = RandomSource(LLAMA), LoadOptions(dtype="float32", max_model_len=64, block_tokens=4)
    runner = Runner(load(source, Bucketed(Options()), options), blocks=[17], slots=4)
    assert len(warm_up(runner, Shape(4, 64, 16), most=2)) == 2
    free = Runner(load(source, Reference(Options()), replace(options, block_tokens=8)), blocks=[9], slots=4)
    assert warm_up(free, Shape(4, 64, 16)) == {}


# The arithmetic of a step, by hand


LAYER = 4096 * (4096 + 1024 + 1024) + 4096 * 4096 + 3 * 4096 * 14336
"""Values of the linears in a layer of Llama-3.1-8B."""
HEAD = 128256 * 4096
NORMS = 65 * 4096
KV_TOKEN = 32 * 2 * 8 * 128 * 2
"""Bytes of keys and values of one token."""
PAIR = 2 * 32 * (128 + 128)
"""FLOPs of one query over one key in one layer."""


def test_decoding_takes_two_flops_a_parameter_and_attention_and_reads_weights_and_context_once() -> None:
    [decode, _] = work(64, 2048).values()
    found = needs(model_of("llama-8b"), Mesh.single(), decode)
    assert found.flops == {"bfloat16": 2 * (32 * LAYER + HEAD) * 64 + 32 * PAIR * 64 * 2048}
    assert found.weight_bytes == 2 * (32 * LAYER + HEAD + NORMS)
    assert (found.kv_read_bytes, found.kv_written_bytes) == (64 * 2048 * KV_TOKEN, 64 * KV_TOKEN)


def test_the_last_layer_of_a_prefill_meets_one_token_behind_its_attention() -> None:
    [_, prefill] = work(64, 2048).values()
    found = needs(model_of("llama-8b"), Mesh.single(), prefill)
    queries_keys = 4096 * (4096 + 1024 + 1024)
    every = 31 * LAYER + queries_keys
    assert found.flops == {"bfloat16": 2 * every * 2048 + 2 * (LAYER - queries_keys + HEAD) + 32 * PAIR * 2048 * 2049 // 2}
    assert found.bytes_moved == 2 * (32 * LAYER + HEAD + NORMS) + 2 * 2048 * KV_TOKEN


def test_four_devices_share_all_but_the_norms() -> None:
    model = model_of("llama-8b")
    [decode, _] = work(64, 2048).values()
    alone, shared = (needs(model, Mesh.of(trace(model).specs, size, 0), decode) for size in (1, 4))
    assert shared.flops["bfloat16"] * 4 == alone.flops["bfloat16"]
    assert shared.weight_bytes == 2 * ((32 * LAYER + HEAD) // 4 + NORMS)
    assert shared.kv_read_bytes * 4 == alone.kv_read_bytes


def test_a_window_bounds_what_is_read_and_seen() -> None:
    assert (Row(1, 100).pairs(16), Row(1, 100).kept(16)) == (16, 16)
    assert (Row(4, 4).pairs(2), Row(4, 4).kept(2)) == (1 + 2 + 2 + 2, 4)
    assert Row(3, 10).pairs(None) == 8 + 9 + 10


def test_the_bound_is_the_slower_of_memory_and_compute() -> None:
    chip = Chip("chip", 1, read_bytes_per_second=100.0, flops={"bfloat16": 1000.0}, source="")
    slow_memory = least_time(Needs({"bfloat16": 1000}, 150, 40, 10), chip)
    assert (slow_memory.seconds, slow_memory.by) == (2.0, "memory")
    slow_compute = least_time(Needs({"bfloat16": 3000}, 150, 40, 10), chip)
    assert (slow_compute.seconds, slow_compute.by) == (3.0, "compute")


def test_what_takes_more_than_the_chip_has_does_not_fit() -> None:
    chip = CHIPS["v5e"]
    shape = BatchShape(1, 1, 1, (1,), 1)
    code = StepCode(shape, 1.0, argument_bytes=chip.memory_bytes - 10, temporary_bytes=10)
    step = Compiled("step", 1, Needs({}, 0, 0, 0), None, code)
    assert step.fits(chip)
    assert not replace(step, code=replace(code, result_bytes=1)).fits(chip)
    assert not replace(step, code=StepCode(shape, 1.0, reason="it ran out of memory")).fits(chip)


def test_abstract_weights_have_the_shapes_of_their_scheme_and_take_no_memory() -> None:
    source = AbstractWeights(SHAPES["tiny"], choose_precision("int4", UNQUANTIZED))
    source.check(model_of("tiny").weights)
    codes = source.tensor("model.layers.0.mlp.down_proj.weight")
    assert isinstance(codes, Quantized)
    assert (codes.shape, codes.scales.shape) == ((64, 128), (64, 4))
    assert source.tensor("model.norm.weight").strides == (0,)


# The command


def compiled(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferplane.cli", "compile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--platform", "reference"], "Add --platform"),
    (["--platform", "tpu"], "v5e:2x2"),
    (["--platform", "tpu:interpreted", "--target", "v5e:2x2"], "Write --platform tpu"),
    (["--platform", "tpu", "--target", "v5e:2x2", "--rows", "0"], "at least 1"),
], ids=["platform", "no-target", "options", "rows"])
def test_what_cannot_be_compiled_is_told_with_the_remedy(arguments: list[str], said: str) -> None:
    done = compiled(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """report(arguments): (exit code, what is told). In this process: libtpu serves one at a time, and other tests have it here."""
    pytest.importorskip("libtpu")

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["compile", "--platform", "tpu", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_an_unknown_target_is_told_with_the_known_ones() -> None:
    pytest.importorskip("libtpu")
    with pytest.raises(ConfigError, match=", ".join(TARGETS)):
        Tpu.compiler("v4:2x2")


def test_more_devices_than_a_slice_has_are_refused() -> None:
    pytest.importorskip("libtpu")
    with pytest.raises(ConfigError, match="v5e:2x2 has 4 chips"):
        Tpu.compiler("v5e:2x2").platform.collectives(World(size=8, one_process=True))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "devices"), [("v5e:2x4", 8), ("v5p:2x2x1", 4), ("v6e:2x2", 4)], ids=["v5e", "v5p", "v6e"])
def test_the_whole_step_of_an_8b_model_compiles_and_fits(
    report: Callable[..., tuple[int, dict[str, Any]]], target: str, devices: int,
) -> None:
    code, told = report("--target", target, "--model", "llama-8b", "--tensor-parallel", str(devices))
    assert (code, told["fits"], told["devices"]) == (0, True, devices)
    assert told["parameters"] == 32 * LAYER + 2 * HEAD + NORMS
    assert told["kv_bytes"] == pytest.approx(64 * 2048 * KV_TOKEN / devices, rel=0.001)
    held = (2 * (32 * LAYER + 2 * HEAD) + 64 * 2048 * KV_TOKEN) / devices
    decode, prefill = told["steps"]
    assert decode["flops"]["bfloat16"] * devices == 2 * (32 * LAYER + HEAD) * 64 + 32 * PAIR * 64 * 2048
    for step in (decode, prefill):
        made = step["compiled"]
        assert not made["reason"]
        assert made["argument_bytes"] == pytest.approx(held, rel=0.01), "each device holds its part of weights and KV, and no more"
        products = sum(step["flops"].values()) - 32 * PAIR * (64 * 2048 if step is decode else 2048 * 2049 // 2) // devices
        assert made["flops"] == pytest.approx(products, rel=0.05), "the compiler sees all but the inside of Pallas kernels"
    assert (decode["bound_by"], prefill["bound_by"]) == ("memory", "compute")
    assert decode["bound_seconds"] == pytest.approx(decode["bytes_moved"] / told["chip"]["read_bytes_per_second"])
    assert decode["tokens_per_second"] == pytest.approx(64 / decode["bound_seconds"])


@pytest.mark.slow
def test_a_model_that_is_too_large_for_its_chips_does_not_fit(report: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, told = report("--target", "v5e:2x2", "--model", "llama-8b")
    assert (code, told["fits"]) == (1, False)
    assert all("memory" in step["compiled"]["reason"] or not step["fits"] for step in told["steps"])
