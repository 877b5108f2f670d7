"""gpt-oss and DeepSeek V3 as they are published: experts in mxfp4, linears in fp8 blocks, layers that predict further tokens."""
from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane.core.checkpoint import Checkpoint
from inferplane.core.formats.mxfp4 import Mxfp4
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.score import logits
from inferplane.errors import CheckpointError
from inferplane.ops import Scheme
from inferplane.ops.quantize import quantize, restored
from inferplane.platforms import registry
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
PROMPT = [3, 1, 4, 1, 5, 92, 6, 53, 58, 97]
OSS = {
    "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 7,
    "num_attention_heads": 4, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
DEEPSEEK = {
    "num_key_value_heads": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 40,
    "first_k_dense_replace": 1, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 12,
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}


def loaded(folder: Path, platform: str = "reference", **options: Any) -> Loaded:
    return load(Checkpoint.open(folder), registry.named(platform), LoadOptions(dtype="float32", **options))


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def theirs(model: Any) -> Array:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([PROMPT])).logits[0])


def rewrite(folder: Path, change: Any, **config: Any) -> None:
    """The checkpoint with other tensors, and more in its config.json."""
    stored = change(load_file(folder / "model.safetensors"))
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, folder / "model.safetensors")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))


# mxfp4


def random_mxfp4(shape: tuple[int, int, int], seed: int) -> tuple[Array, Array]:
    """Blocks and scales of a weight [experts, outputs, inputs], whose values are around 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    experts, outputs, inputs = shape
    power = 127 - int(np.log2(inputs) / 2 + 1)
    return (rng.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8),
            rng.integers(power - 2, power + 2, (experts, outputs, inputs // 32), np.uint8))


class Held:
    """A file of arrays."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    def tensor(self, name: str) -> Array:
        return self.arrays[name]


def test_blocks_of_mxfp4_stand_for_what_transformers_says() -> None:
    torch = pytest.importorskip("torch")
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    blocks, scales = random_mxfp4((2, 24, 64), seed=1)
    scales[0, 0] = (0, 254)
    file = Held({"x_blocks": blocks, "x_scales": scales})
    found = np.asarray(Mxfp4({}, dict.fromkeys(file.arrays, file)).weight("x"))
    expected = convert(torch.from_numpy(blocks), torch.from_numpy(scales)).float().numpy()
    np.testing.assert_array_equal(found.astype(np.float32), expected)


def as_mxfp4(stored: dict[str, Array]) -> dict[str, Array]:
    made = dict(stored)
    for number, name in enumerate(name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))):
        experts, inputs, outputs = made.pop(name).shape
        made[f"{name}_blocks"], made[f"{name}_scales"] = random_mxfp4((experts, outputs, inputs), seed=number)
    return made


@pytest.mark.parametrize("platform", ["reference", "cpu"])
def test_experts_in_mxfp4_are_computed_in_the_floats_that_they_stand_for(platform: str, checkpoints: ModuleType, tmp_path: Path) -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = checkpoints.write(tmp_path, "gpt_oss", **OSS)
    rewrite(tmp_path, as_mxfp4, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    stored = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{name}_blocks" in stored:
                codes = (torch.from_numpy(stored[f"{name}_{part}"]) for part in ("blocks", "scales"))
                parameter.copy_(convert_moe_packed_tensors(*codes, dtype=torch.float32))
    ours = loaded(tmp_path, platform)
    assert relative(logits(ours, PROMPT), theirs(model)) < 1e-5
    assert [choice.spec.stored for choice in ours.resolution if choice.spec.op == "moe"] == ["mxfp4"]


def test_a_scale_that_is_missing_is_named(checkpoints: ModuleType, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "gpt_oss", **OSS)

    def change(stored: dict[str, Array]) -> dict[str, Array]:
        return {name: value for name, value in as_mxfp4(stored).items() if name != "model.layers.1.mlp.experts.down_proj_scales"}

    rewrite(tmp_path, change, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match=r"lacks model.layers.1.mlp.experts.down_proj_scales"):
        loaded(tmp_path)


# fp8


def is_quantized(name: str) -> bool:
    return name.endswith("_proj.weight") or "kv_a_proj" in name


def as_fp8(stored: dict[str, Array]) -> dict[str, Array]:
    made = dict(stored)
    for name in filter(is_quantized, stored):
        codes = quantize(stored[name], Scheme.parse("float8_e4m3fn:g32:r16"))
        made[name], made[f"{name}_scale_inv"] = codes.codes, codes.scales
    return made


@pytest.mark.parametrize("platform", ["reference", "cpu"])
def test_linears_in_fp8_stay_in_codes_and_the_rest_is_told_to_be_floats_again(
    platform: str, checkpoints: ModuleType, tmp_path: Path
) -> None:
    import torch

    model, scheme = checkpoints.write(tmp_path, "deepseek_v3", **DEEPSEEK), Scheme.parse("float8_e4m3fn:g32:r16")
    floats = load_file(tmp_path / "model.safetensors")
    rewrite(tmp_path, as_fp8, quantization_config=FP8)
    meant = {name: restored(quantize(value, scheme), scheme, np.float32) for name, value in floats.items() if is_quantized(name)}
    _copy_experts(model, {**floats, **meant}, torch)
    ours = loaded(tmp_path, platform)
    assert relative(logits(ours, PROMPT), theirs(model)) < 1e-5
    specs: Any = [choice.spec for choice in ours.resolution]
    assert {spec.stored for spec in specs if spec.op in ("moe", "head_linear")} == {"float8_e4m3fn:g32:r16"}
    assert {spec.scheme for spec in specs if spec.op == "linear" and spec.out_dtype is None} == {scheme}


def _copy_experts(model: Any, stored: dict[str, Array], torch: Any) -> None:
    """Into a model of transformers, which keeps all experts of a layer in one tensor."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp.experts." not in name:
                parameter.copy_(torch.from_numpy(stored[name]))
                continue
            at, what = name.rsplit(".", 1)
            parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[what]
            for expert in range(len(parameter)):
                parameter[expert] = torch.from_numpy(np.concatenate([stored[f"{at}.{expert}.{part}.weight"] for part in parts]))


def test_experts_are_not_quantized_because_somebody_asks(checkpoints: ModuleType, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "deepseek_v3", **DEEPSEEK)
    with pytest.raises(CheckpointError, match=r"kv_b_proj is quantized \(float8_e4m3fn.*Remedy: leave the quantization out"):
        loaded(tmp_path, quantization="float8_e4m3fn:g128:r128")


# What lies beside


def test_layers_that_predict_further_tokens_are_left_alone(checkpoints: ModuleType, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, "deepseek_v3", **DEEPSEEK, num_nextn_predict_layers=1)

    def with_another(stored: dict[str, Array]) -> dict[str, Array]:
        return {**stored, "model.layers.3.eh_proj.weight": np.zeros((48, 96), np.float32)}

    rewrite(tmp_path, with_another)
    assert relative(logits(loaded(tmp_path), PROMPT), theirs(model)) < 1e-5
    rewrite(tmp_path, lambda stored: stored, num_nextn_predict_layers=0)
    with pytest.raises(CheckpointError, match=r"has model.layers.3.eh_proj.weight, for which"):
        loaded(tmp_path)


def test_a_cell_of_latent_attention_holds_one_key_for_all_heads(checkpoints: ModuleType, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "deepseek_v3", **DEEPSEEK)
    [group] = loaded(tmp_path).model.states
    assert {name: (array.heads, array.dim) for name, array in group.arrays.items()} == {"k": (1, 24 + 8)}


def test_code_of_its_own_in_a_checkpoint_is_the_code_that_is_known(checkpoints: ModuleType, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, "deepseek_v3", **DEEPSEEK)
    rewrite(tmp_path, lambda stored: stored, auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"})
    assert relative(logits(loaded(tmp_path), PROMPT), theirs(model)) < 1e-5
