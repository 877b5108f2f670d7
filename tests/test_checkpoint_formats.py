"""A checkpoint that is quantized already computes what its codes stand for, and says so where it cannot."""
from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane import LLM
from inferplane.core.checkpoint import Checkpoint
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.score import logits
from inferplane.errors import CheckpointError, ConfigError
from inferplane.model_zoo.base import Precision
from inferplane.ops import Scheme, WeightTable
from inferplane.ops.quantize import quantize
from inferplane.platforms.contract import Options
from inferplane.platforms.reference import Reference


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _sibling("quantized_checkpoints")
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CHANNEL = {"type": "int", "strategy": "channel"}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
DYNAMIC = {"num_bits": 8, "dynamic": True, "strategy": "token", "symmetric": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}

CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "compressed-int4-group": ("int4:g32:bfloat16", made.compressed("pack-quantized", INT4), made.pack_quantized(4)),
    "compressed-int4-zeros": (
        "int4:g32:zeros:float16", made.compressed("pack-quantized", {**INT4, "symmetric": False}), made.pack_quantized(4),
    ),
    "compressed-int4-channel": ("int4", made.compressed("pack-quantized", {**CHANNEL, "num_bits": 4}), made.pack_quantized(4)),
    "compressed-int8-channel": ("int8", made.compressed("pack-quantized", {**CHANNEL, "num_bits": 8}), made.pack_quantized(8)),
    "compressed-int8-zeros": (
        "int8:g32:zeros", made.compressed("pack-quantized", {**INT4, "num_bits": 8, "symmetric": False}), made.pack_quantized(8),
    ),
    "compressed-w8a8": (
        "int8:bfloat16:a8", made.compressed("int-quantized", {**CHANNEL, "num_bits": 8}, {**DYNAMIC, "type": "int"}), made.plain_quantized,
    ),
    "compressed-fp8-channel": (
        "float8_e4m3fn:af8", made.compressed("float-quantized", {**FLOAT, "strategy": "channel"}, {**DYNAMIC, "type": "float"}),
        made.plain_quantized,
    ),
    "compressed-fp8-tensor": (
        "float8_e4m3fn:rall:bfloat16", made.compressed("float-quantized", {**FLOAT, "strategy": "tensor"}), made.plain_quantized,
    ),
    "compressed-fp8-block": (
        "float8_e4m3fn:g32:r16", made.compressed("float-quantized", {**FLOAT, "strategy": "block", "block_structure": [16, 32]}),
        made.plain_quantized,
    ),
    "gptq-4": ("int4:g32:zeros:float16", GPTQ, made.gptq(4)),
    "gptq-4-symmetric": ("int4:g32:float16", {**GPTQ, "sym": True}, made.gptq(4)),
    "gptq-4-v2": ("int4:g32:zeros:float16", {**GPTQ, "checkpoint_format": "gptq_v2"}, made.gptq(4, v2=True)),
    "gptq-8": ("int8:g32:zeros:float16", {**GPTQ, "bits": 8}, made.gptq(8)),
    "gptq-whole-rows": ("int4:zeros:float16", {**GPTQ, "group_size": -1}, made.gptq(4)),
    "awq": ("int4:g32:zeros:float16", AWQ, made.awq),
}


@pytest.fixture(scope="module")
def platform() -> Reference:
    return Reference(Options())


def loaded(path: Path, platform: Reference, **options: Any) -> Loaded:
    return load(Checkpoint.open(path), platform, LoadOptions(dtype="float32", **options))


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("scheme", "settings", "pack"), CASES.values(), ids=list(CASES))
def test_the_logits_are_those_of_the_floats_that_the_codes_stand_for(
    scheme: str, settings: dict[str, Any], pack: Any, platform: Reference, tmp_path: Path
) -> None:
    written = Scheme.parse(scheme)
    ours, floats = made.write(tmp_path / "quantized", written, settings, pack)
    checkpoint = Checkpoint.open(ours)
    assert checkpoint.precision.of("model.layers.1.mlp.down_proj") == written
    assert checkpoint.precision.of("lm_head") is None and checkpoint.precision.scheme("model.embed_tokens") is None
    found, expected = (logits(loaded(path, platform), made.PROMPT) for path in (ours, floats))
    if written.activation:
        same = load(Given(floats, settings, written), platform, LoadOptions(dtype="float32"))
        expected = logits(same, made.PROMPT)
    assert relative(found, expected) < 2e-6


class Given:
    """The codes handed over directly, where floats say too little because activations are quantized as well."""

    def __init__(self, floats: Path, settings: dict[str, Any], scheme: Scheme) -> None:
        self.floats, self.scheme, self.fingerprint = Checkpoint.open(floats), scheme, "given"
        self.config = {**self.floats.config, "quantization_config": settings}
        self.precision = Precision(lambda module: scheme if module.endswith("_proj") else None)
        self.originals = made.floats(made.CONFIG)

    def check(self, weights: WeightTable) -> None: ...

    def tensor(self, name: str) -> Any:
        return quantize(self.originals[name], self.scheme) if made.is_linear(name) else self.floats.tensor(name)


DATA = Path(__file__).with_name("data") / "quantized"
WRITTEN = {path.stem if path.is_file() else path.name: path for path in (*sorted(DATA.glob("*/")), *sorted(DATA.glob("*.gguf")))}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_usual_packages_wrote_gives_the_logits_that_they_restore(name: str, platform: Reference) -> None:
    path = WRITTEN[name]
    expected = np.load(path / "expected.npy" if path.is_dir() else path.with_suffix(".npy"))
    ours = loaded(path, platform)
    assert all(spec.scheme is not None and spec.scheme.activation is None for spec in ours.model.down)
    assert relative(logits(ours, [3, 1, 4, 1, 5, 9, 2, 6]), expected) < 3e-6


def test_every_format_was_written_by_a_package_of_its_own() -> None:
    assert set(WRITTEN) == {
        "awq", "compressed-fp8", "compressed-int4-zeros", "compressed-int8", "gptq-4", "gptq-8", "q4_0", "q8_0",
    }


def test_activations_are_quantized_only_where_the_checkpoint_says_so(platform: Reference, tmp_path: Path) -> None:
    activations = {name: Scheme.parse(case[0]).activation for name, case in CASES.items()}
    for name in ("compressed-int4-group", "gptq-4", "awq", "compressed-w8a8"):
        scheme, settings, pack = CASES[name]
        ours, _ = made.write(tmp_path / name, Scheme.parse(scheme), settings, pack)
        assert {use.scheme.activation for use in loaded(ours, platform).model.down} == {activations[name]}
    assert [name for name, kind in activations.items() if kind] == ["compressed-w8a8", "compressed-fp8-channel"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_alone_is_a_model(family: str, kind: str, platform: Reference, tmp_path: Path) -> None:
    config = {**made.CONFIG, "model_type": family}
    meant = made.gguf(tmp_path / "model.gguf", config, lambda name: kind if name.endswith(("_proj.weight", "lm_head.weight")) else "F32")
    floats = made.float_checkpoint(tmp_path / "floats", config, meant)
    found, expected = (logits(loaded(path, platform), made.PROMPT) for path in (tmp_path / "model.gguf", floats))
    assert relative(found, expected) < 2e-6


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_tied_embedding_of_codes_is_looked_up_in_floats_and_multiplied_in_codes(kind: str, platform: Reference, tmp_path: Path) -> None:
    config = {**made.CONFIG, "tie_word_embeddings": True}
    meant = made.gguf(tmp_path / "model.gguf", config, lambda name: "F32" if "norm" in name else kind)
    floats = made.float_checkpoint(tmp_path / "floats", config, meant)
    ours = loaded(tmp_path / "model.gguf", platform)
    assert ours.model.lm_head.scheme == made.BLOCKS[kind][1]
    found, expected = logits(ours, made.PROMPT), logits(loaded(floats, platform), made.PROMPT)
    assert relative(found, expected) < 2e-6
