"""A checkpoint that is quantized already computes what its codes stand for, and says so where it cannot."""
from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.core.checkpoint import Checkpoint
from inferplane.core.formats.gguf import READERS, SCHEMES, config_of
from inferplane.core.formats.gguf_file import GgufFile
from inferplane.core.formats.gguf_words import tokenizer_of
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.safetensors_file import Entry
from inferplane.core.score import logits
from inferplane.errors import CheckpointError, ConfigError
from inferplane.model_zoo.base import Precision
from inferplane.ops import Scheme, WeightTable
from inferplane.ops.quantize import dequantized, quantize
from inferplane.platforms import registry
from inferplane.platforms.contract import Options, Platform
from inferplane.platforms.reference import Reference
from safetensors.numpy import load_file, save_file


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
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}

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
    "fp8": ("float8_e4m3fn:g32:r16", FP8, made.fp8),
}


@pytest.fixture(scope="module")
def platform() -> Reference:
    return Reference(Options())


def loaded(path: Path, platform: Platform, **options: Any) -> Loaded:
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


@pytest.mark.parametrize("computes", ["reference", "cpu"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_usual_packages_wrote_gives_the_logits_that_they_restore(name: str, computes: str) -> None:
    path = WRITTEN[name]
    expected = np.load(path / "expected.npy" if path.is_dir() else path.with_suffix(".npy"))
    ours = loaded(path, registry.named(computes))
    assert all(mlp.down.scheme is not None and mlp.down.scheme.activation is None for mlp in ours.model.mlps)
    assert relative(logits(ours, [3, 1, 4, 1, 5, 9, 2, 6]), expected) < 3e-6


def test_blocks_of_q6_k_stand_for_what_ggml_says() -> None:
    """Most files in Q4_0 have their head in it."""
    kept = np.load(DATA / "q6_k.npz")
    found = READERS["Q6_K"](kept["blocks"].reshape(4, -1, 210))
    np.testing.assert_array_equal(dequantized(found, SCHEMES["Q6_K"]).astype(np.float32), kept["values"])


def test_every_format_was_written_by_a_package_of_its_own() -> None:
    assert set(WRITTEN) == {
        "awq", "compressed-fp8", "compressed-int4-zeros", "compressed-int8", "gptq-4", "gptq-8", "q4_0", "q8_0",
    }


def test_activations_are_quantized_only_where_the_checkpoint_says_so(platform: Reference, tmp_path: Path) -> None:
    activations = {name: Scheme.parse(case[0]).activation for name, case in CASES.items()}
    for name in ("compressed-int4-group", "gptq-4", "awq", "compressed-w8a8"):
        scheme, settings, pack = CASES[name]
        ours, _ = made.write(tmp_path / name, Scheme.parse(scheme), settings, pack)
        assert {mlp.down.scheme.activation for mlp in loaded(ours, platform).model.mlps} == {activations[name]}
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


def test_generation_works_from_each_kind_of_path(tmp_path: Path) -> None:
    def answer(model: Path) -> list[int]:
        with LLM(str(model), platform="reference", tokenizer="tiny", max_num_seqs=1, dtype="float32") as llm:
            return list(llm.generate([[3, 1, 4]], SamplingParams(temperature=0.0, max_tokens=6))[0].outputs[0].token_ids)

    for name in ("awq", "q4_0"):
        assert len(answer(WRITTEN[name])) == 6
    (tmp_path / "model.gguf").write_bytes(WRITTEN["q4_0"].read_bytes())
    assert answer(tmp_path) == answer(WRITTEN["q4_0"])


def test_a_tokenizer_is_built_from_metadata_only_where_it_is_known_to_the_letter(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["Hello world, it's 12345 o'clock!\n\n  Größe: naïve\t日本語 <|end|>x", "def f(x):\n    return x**2  # don't"]
    for pre, digits in (("llama-bpe", "{1,3}"), ("qwen2", "")):
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + (
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        trained = tokenizers.Tokenizer(tokenizers.models.BPE())
        trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=alphabet)
        trained.train_from_iterator(texts * 4, trainer)
        learned = json.loads(trained.to_str())["model"]
        tokens = sorted(learned["vocab"], key=learned["vocab"].get)
        said = {
            **made.gguf_metadata(made.CONFIG), "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in learned["merges"]], "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        }
        path = tmp_path / f"{pre}.gguf"
        made.gguf(path, made.CONFIG, lambda name: "F32", said)
        ours = tokenizer_of(GgufFile.open(path))
        for text in texts:
            begin = [0] if pre == "llama-bpe" else []
            assert ours.encode(text).ids == begin + trained.encode(text).ids
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False).endswith(text)
    with pytest.raises(CheckpointError, match=r"kind None.*--tokenizer FOLDER"):
        tokenizer_of(GgufFile.open(WRITTEN["q8_0"]))


def _settings(name: str, **changes: Any) -> dict[str, Any]:
    return {**CASES[name][1], **changes}


def _grouped(weights: dict[str, Any] | None = None, activations: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return made.compressed("pack-quantized", {**INT4, **(weights or {})}, activations, **more)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"quant_method": "bitsandbytes"}, "bitsandbytes.*Known: awq, compressed-tensors, fp8, gptq, mxfp4"),
    "no-method": ({}, "None.*Known: awq"),
    "gptq-3-bits": (_settings("gptq-4", bits=3), "'bits' is 3.*4 or 8"),
    "gptq-marlin": (_settings("gptq-4", checkpoint_format="marlin"), "marlin"),
    "gptq-group-0": (_settings("gptq-4", group_size=0), "'group_size' is 0"),
    "gptq-dynamic": (_settings("gptq-4", dynamic={"lm_head": {}}), "dynamic"),
    "fp8-of-another-kind": ({**FP8, "fmt": "e5m2"}, "'fmt' is 'e5m2'.*e4m3"),
    "fp8-static-activations": ({**FP8, "activation_scheme": "static"}, "static.*dynamic"),
    "fp8-without-blocks": ({**FP8, "weight_block_size": None}, "weight_block_size.*None.*blocks"),
    "awq-gemv": (_settings("awq", version="gemv"), "gemv.*gemm"),
    "awq-8-bits": (_settings("awq", bits=8), "'bits' is 8"),
    "compressed-bits": (_grouped({"num_bits": 3}), "num_bits.*3.*4 or 8 bits"),
    "compressed-sparse": (_grouped(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.*not sparse"),
    "compressed-cache": (_grouped(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme.*set it to null"),
    "compressed-rotated": (_grouped(transform_config={"config_groups": {"u": {}}}), "transform_config"),
    "compressed-format": (made.compressed("nvfp4-pack-quantized", INT4), "nvfp4.*pack-quantized"),
    "compressed-static-activations": (_grouped(None, {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}), "dynamic"),
    "compressed-activations-per-tensor": (_grouped(None, {**DYNAMIC, "strategy": "tensor"}), "by token or group"),
    "compressed-strategy": (_grouped({"strategy": "tensor_group"}), "tensor_group"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_way_to_quantize_that_is_not_known_is_refused_before_anything_loads(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = made.float_checkpoint(tmp_path, {**made.CONFIG, "quantization_config": settings}, made.floats(made.CONFIG))
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(path)
    assert "Remedy" in str(caught.value)


Q = "model.layers.0.self_attn.q_proj."
ODD: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "missing-scales": ("gptq-4", "scales", lambda t: None, f"lacks {Q}scales"),
    "missing-zeros": ("awq", "qzeros", lambda t: None, f"lacks {Q}qzeros"),
    "missing-weight": ("compressed-int4-group", "weight_packed", lambda t: None, f"lacks {Q}weight_packed"),
    "floats-instead": ("gptq-4-symmetric", "weight", lambda t: np.zeros((128, 64), np.float32), f"has {Q}weight"),
    "scales-for-other-groups": ("gptq-4", "scales", lambda t: t[:1], rf"{Q}scales has shape \[1, 128\].*\[2, 128\]"),
    "codes-of-another-width": ("awq", "qweight", lambda t: t[:, 1:], rf"{Q}qweight has shape \[64, 15\]"),
    "codes-in-floats": ("compressed-w8a8", "weight", lambda t: t.astype(np.float32), "stored as float32.*int8"),
    "scales-in-doubles": ("compressed-int8-zeros", "weight_scale", lambda t: t.astype(np.float64), "float64"),
    "reordered": ("gptq-4", "g_idx", lambda t: t[::-1], "desc_act"),
    "symmetric-with-zeros": ("gptq-4-symmetric", "qzeros", lambda t: t + 1, "apart from the middle.*sym"),
    "false-shape": ("compressed-int4-channel", "weight_shape", lambda t: np.array([128, 9]), "tells 9 inputs"),
    "stranger": ("compressed-int8-channel", "input_scale", lambda t: np.ones(1, np.float32), f"has {Q}input_scale"),
}


def _changed(path: Path, part: str, change: Callable[[Any], Any]) -> Path:
    stored = load_file(path / "model.safetensors")
    new = change(stored.pop(Q + part, None))
    save_file(stored if new is None else {**stored, Q + part: np.ascontiguousarray(new)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("name", "part", "change", "message"), ODD.values(), ids=list(ODD))
def test_an_odd_tensor_is_named(name: str, part: str, change: Any, message: str, platform: Reference, tmp_path: Path) -> None:
    scheme, settings, pack = CASES[name]
    ours, _ = made.write(tmp_path / "quantized", Scheme.parse(scheme), settings, pack)
    with pytest.raises(CheckpointError, match=message) as caught:
        loaded(_changed(ours, part, change), platform)
    assert "Remedy" in str(caught.value)


def test_what_changes_nothing_may_lie_beside_the_codes(platform: Reference, tmp_path: Path) -> None:
    scheme, settings, pack = CASES["gptq-4"]
    ours, floats = made.write(tmp_path / "quantized", Scheme.parse(scheme), {**settings, "desc_act": True}, pack)
    _changed(ours, "bias", lambda t: np.zeros(128, np.float16))
    found = logits(loaded(_changed(ours, "g_idx", lambda t: None), platform), made.PROMPT)
    assert relative(found, logits(loaded(floats, platform), made.PROMPT)) < 2e-6


def test_a_layer_or_a_pattern_may_stay_in_floats(platform: Reference, tmp_path: Path) -> None:
    scheme = Scheme.parse("int4:g32:float16")
    settings = made.compressed("pack-quantized", INT4, ignore=["lm_head", "model.layers.0.mlp.down_proj", r"re:.*layers\.1\.self_attn.*"])

    def quantized(name: str) -> bool:
        return made.is_linear(name) and name != "model.layers.0.mlp.down_proj.weight" and "layers.1.self_attn" not in name

    ours, floats = made.write(tmp_path / "quantized", scheme, settings, made.pack_quantized(4), linear=quantized)
    model = loaded(ours, platform).model
    assert [mlp.down.scheme for mlp in model.mlps] == [None, scheme] and [spec.scheme for spec in model.qkv] == [scheme, None]
    assert relative(logits(loaded(ours, platform), made.PROMPT), logits(loaded(floats, platform), made.PROMPT)) < 2e-6


def test_fused_linears_of_two_precisions_are_refused_by_name(platform: Reference, tmp_path: Path) -> None:
    settings = made.compressed("pack-quantized", INT4, ignore=["re:.*q_proj"])
    ours, _ = made.write(
        tmp_path / "quantized", Scheme.parse("int4:g32"), settings, made.pack_quantized(4),
        linear=lambda name: made.is_linear(name) and "q_proj" not in name,
    )
    with pytest.raises(CheckpointError, match="q_proj: None.*k_proj: int4:g32.*Remedy"):
        loaded(ours, platform)


def test_a_checkpoint_of_codes_is_not_quantized_again(platform: Reference) -> None:
    with pytest.raises(ConfigError, match="quantized already"):
        loaded(WRITTEN["awq"], platform, quantization="int8")


def test_other_kinds_of_gguf_are_named_with_a_remedy(tmp_path: Path) -> None:
    data = bytearray(WRITTEN["q8_0"].read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert data[at] == 8
    data[at] = 12
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"Q4_K: 1 tensors, such as blk.0.attn_q.weight.*Remedy.*Q8_0 or Q4_0.*--quantization"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(("keep", "message"), [
    (3, "no GGUF file"), (20, "ends within its header"), (400, "ends within its header"), (-100, "truncated: .* bytes are missing"),
], ids=["magic", "counts", "metadata", "data"])
def test_a_damaged_gguf_file_is_refused_with_what_is_wrong(keep: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(WRITTEN["q8_0"].read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path / "model.gguf")


def test_several_gguf_files_in_a_folder_ask_for_one() -> None:
    with pytest.raises(CheckpointError, match=r"2 GGUF files: q4_0.gguf, q8_0.gguf.*give one of them"):
        Checkpoint.open(DATA)


@pytest.mark.parametrize(("metadata", "message"), [
    ({"general.architecture": "gemma3"}, "gemma3.*known: llama, qwen2, qwen3.*config.json beside"),
    ({"llama.block_count": None}, "no llama.block_count"),
    ({"llama.rope.scaling.type": "yarn"}, "'yarn'.*config.json beside"),
    ({"llama.attention.sliding_window": 64}, "sliding window"),
], ids=["architecture", "missing-key", "yarn", "window"])
def test_metadata_that_says_too_little_asks_for_a_config(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = {key: value for key, value in {**made.gguf_metadata(made.CONFIG), **metadata}.items() if value is not None}
    made.gguf(tmp_path / "model.gguf", made.CONFIG, lambda name: "F16", said)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(made.CONFIG))
    assert Checkpoint.open(tmp_path).config == made.CONFIG


def test_llamas_scaling_is_read_from_the_divisors_in_the_file(tmp_path: Path) -> None:
    config = {**made.CONFIG, "rope_theta": 500000.0, "head_dim": 64}
    made.gguf(tmp_path / "model.gguf", config, lambda name: "F16")
    file = GgufFile.open(tmp_path / "model.gguf")
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 64, 2) / 64)
    smooth = (8192 / waves - 1) / 3
    divisors = np.where(waves > 8192, 32.0, np.where(waves < 2048, 1.0, 1 / ((1 - smooth) / 32 + smooth)))

    def scaled(values: Any) -> GgufFile:
        data = np.ascontiguousarray(values, np.float32).view(np.uint8)
        entry = Entry((32,), np.dtype(np.float32), file.data.size, file.data.size + data.size)
        return replace(file, entries={**file.entries, "rope_freqs.weight": entry}, data=np.concatenate([file.data, data]))

    assert config_of(scaled(divisors))["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }
    with pytest.raises(CheckpointError, match="rope_freqs"):
        config_of(scaled(np.linspace(1, 3, 32)))
