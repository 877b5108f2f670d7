"""Each model family computes what transformers computes: logits, greedy tokens, rotary scaling, windows, odd shapes."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane.conformance.verify import verify
from inferplane.core.checkpoint import Checkpoint
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.models import model_class
from inferplane.core.score import logits
from inferplane.core.trace import trace
from inferplane.errors import CheckpointError, ModelError, ModelNotFound
from inferplane.model_zoo.base import Model
from inferplane.model_zoo.deepseek_v3 import DeepseekV3
from inferplane.model_zoo.gemma2 import Gemma2
from inferplane.model_zoo.gemma3_text import Gemma3Text
from inferplane.model_zoo.gpt_oss import GptOss
from inferplane.model_zoo.llama import Llama
from inferplane.model_zoo.mistral import Mistral
from inferplane.model_zoo.mixtral import Mixtral
from inferplane.model_zoo.qwen2 import Qwen2
from inferplane.model_zoo.qwen3 import Qwen3
from inferplane.model_zoo.qwen3_moe import Qwen3Moe
from inferplane.platforms import registry
from inferplane.platforms.contract import Options, Platform
from inferplane.platforms.reference import Reference

ZOO = (DeepseekV3, Gemma2, Gemma3Text, GptOss, Llama, Qwen2, Qwen3, Mistral, Mixtral, Qwen3Moe)
FAMILIES: dict[str, type[Model]] = {model.model_type: model for model in ZOO}
STEPS = 64
SPARSE = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "decoder_sparse_step": 2,
          "rms_norm_eps": 1e-5, "rope_theta": 1e4}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]
OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7, "rope_parameters": {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False, "rope_theta": 150000.0}}
DEEPSEEK = {
    "num_key_value_heads": 6, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 40,
    "first_k_dense_replace": 1, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 12,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim-80": ("llama", {"head_dim": 80}),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1}),
    "llama-no-grouping": ("llama", {"num_key_value_heads": 6}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "qwen2": ("qwen2", {}),
    "qwen2-seven-per-kv-head": (
        "qwen2",
        {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 56, "tie_word_embeddings": True},
    ),
    "qwen2-upper-layers-slide": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-all-layers-slide": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-layer-types": ("qwen3", {"use_sliding_window": True, "sliding_window": 11, "layer_types": MIXED}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window-7": ("mistral", {"sliding_window": 7, "head_dim": 16}),
    "mistral-window-2": ("mistral", {"sliding_window": 2}),
    "mixtral": ("mixtral", {}),
    "mixtral-window-7-one-expert": ("mixtral", {"sliding_window": 7, "num_local_experts": 5, "num_experts_per_tok": 1}),
    "qwen3-moe": ("qwen3_moe", EXPERTS),
    "qwen3-moe-renormalized": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-moe-every-second-layer": ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 2, "head_dim": 16}),
    "qwen3-moe-dense-layer-sliding": (
        "qwen3_moe", {**EXPERTS, "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 9}),
    "gpt-oss": ("gpt_oss", OSS),
    "gpt-oss-low-limit": (
        "gpt_oss",
        {**OSS, "swiglu_limit": 0.6, "swiglu_alpha": 1.1, "num_experts_per_tok": 1, "layer_types": MIXED, "tie_word_embeddings": True},
    ),
    "gpt-oss-no-biases-in-attention": ("gpt_oss", {**OSS, "attention_bias": False, "head_dim": 16, "num_experts_per_tok": 4}),
    "deepseek-v3": ("deepseek_v3", DEEPSEEK),
    "deepseek-v3-yarn": (
        "deepseek_v3",
        {**DEEPSEEK, "routed_scaling_factor": 1.0, "n_shared_experts": 2, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.3}},
    ),
    "deepseek-v3-gates-as-they-are": (
        "deepseek_v3",
        {**DEEPSEEK, "norm_topk_prob": False, "n_group": 1, "topk_group": 1, "attention_bias": True, "rope_interleave": False},
    ),
    "deepseek-v3-dense-with-whole-queries": ("deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 3, "q_lora_rank": None}),
    "gemma2": ("gemma2", {}),
    "gemma2-low-caps": (
        "gemma2",
        {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 6.0, "query_pre_attn_scalar": 12, "sliding_window": 7},
    ),
    "gemma2-without-caps": (
        "gemma2",
        {
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True,
            "tie_word_embeddings": False, "layer_types": MIXED, "sliding_window": 11,
        },
    ),
    "gemma3_text": ("gemma3_text", {"num_hidden_layers": 7, "sliding_window": 9}),
    "gemma3_text-ropes": (
        "gemma3_text",
        {
            "layer_types": MIXED, "sliding_window": 11, "final_logit_softcapping": 8.0, "hidden_activation": "silu",
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.707,
        "mscale_all_dim": 1.3,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.25,
    },
    "yarn-betas": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2},
    "yarn-no-truncation": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False},
}


def loaded(folder: Path, platform: Platform | None = None, max_model_len: int | None = None) -> Loaded:
    """A folder on the reference platform, or another, in float32."""
    platform = platform or Reference(Options())
    return load(Checkpoint.open(folder), platform, LoadOptions(dtype="float32", max_model_len=max_model_len))


def prompt(vocab: int = 131, tokens: int = 40) -> list[int]:
    return [int(token) for token in np.random.default_rng(7).integers(0, vocab, tokens)]


def expected_logits(model: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).logits[0])


def worst(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest error, relative to the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(params=["reference", "cpu"])
def platform(request: Any) -> Iterator[Platform]:
    made = registry.named(request.param, threads=1)
    yield made
    made.close()


@pytest.mark.parametrize(("family", "config"), CASES.values(), ids=list(CASES))
def test_logits_and_greedy_tokens_are_those_of_transformers(
    family: str, config: dict[str, Any], platform: Platform, checkpoints: ModuleType, tmp_path: Path
) -> None:
    checkpoints.write(tmp_path, family, **config)
    report = verify(tmp_path, platform, prompt=prompt(), steps=STEPS)
    assert report.logit_error < 1e-4
    assert report.equal_steps == report.steps == STEPS


def test_a_prompt_in_chunks_gives_the_logits_of_one_in_a_piece(
    platform: Platform, checkpoints: ModuleType, tmp_path: Path
) -> None:
    model = checkpoints.write(tmp_path, *CASES["qwen3-layer-types"][:1], **CASES["qwen3-layer-types"][1])
    ours, tokens = loaded(tmp_path, platform), prompt(tokens=70)
    for chunk in (1, 7, 16, 33):
        assert worst(logits(ours, tokens, chunk_tokens=chunk), expected_logits(model, tokens)) < 1e-4


def test_verification_finds_a_kernel_that_is_wrong(checkpoints: ModuleType, tmp_path: Path) -> None:
    class Wrong(Reference):
        def kernels(self) -> Any:
            def run(spec: Any, *arrays: Any) -> Any:
                return right.run(replace(spec, window=spec.window - 1), *arrays)

            right = next(kernel for kernel in super().kernels() if kernel.op == "attention")
            return [replace(right, run=run), *super().kernels()]

    checkpoints.write(tmp_path, "mistral", sliding_window=7)
    assert verify(tmp_path, Reference(Options()), steps=16).passed
    report = verify(tmp_path, Wrong(Options()), steps=16)
    assert not report.passed
    assert report.logit_error > 0.01
    assert report.equal_steps < 16
    assert report.margin is not None
    assert report.margin > 0


@pytest.mark.parametrize("rope", ROPES.values(), ids=list(ROPES))
def test_every_rotary_scaling_gives_the_logits_of_transformers(
    rope: dict[str, Any], checkpoints: ModuleType, tmp_path: Path
) -> None:
    model = checkpoints.write(tmp_path, "llama", head_dim=32, rope_parameters=dict(rope), num_hidden_layers=2)
    tokens = prompt(tokens=120)
    assert worst(logits(loaded(tmp_path), tokens), expected_logits(model, tokens)) < 1e-4


@pytest.mark.parametrize("rope", ROPES.values(), ids=list(ROPES))
@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling", "rope_scaling-type"])
def test_frequencies_and_factor_are_those_of_transformers_in_either_form(rope: dict[str, Any], form: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config: dict[str, Any] = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1,
                              "vocab_size": 8, "intermediate_size": 8, "max_position_embeddings": 256}
    scaling = dict(rope)
    if form == "rope_parameters":
        config["rope_parameters"] = scaling
    else:
        config["rope_theta"] = scaling.pop("rope_theta", 10000.0)
        if form.endswith("-type"):
            scaling["type"] = scaling.pop("rope_type")
        config["rope_scaling"] = scaling if len(scaling) > 1 else None
    theirs = transformers.LlamaConfig.from_dict(json.loads(json.dumps(config)))
    kind = theirs.rope_parameters["rope_type"]
    default = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
    frequencies, factor = (default if kind == "default" else ROPE_INIT_FUNCTIONS[kind])(theirs)
    ours = Llama(config, dtype="float32", block_tokens=16).rope_write[0].query
    np.testing.assert_allclose(ours.frequencies, frequencies.numpy(), rtol=3e-7)
    assert ours.scale == pytest.approx(factor, rel=1e-12)


def test_dynamic_scaling_is_fixed_at_the_longest_sequence_served(checkpoints: ModuleType, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, "llama", rope_parameters=dict(ROPES["dynamic"]), max_position_embeddings=64)
    tokens = prompt(tokens=150)
    long = loaded(tmp_path, max_model_len=150)
    assert long.model.context_tokens == 150
    assert worst(logits(long, tokens), expected_logits(model, tokens)) < 1e-4
    short = checkpoints.build("llama", rope_parameters=dict(ROPES["dynamic"]), max_position_embeddings=64)
    for served in (None, 40, 64):
        ours = loaded(tmp_path, max_model_len=served)
        assert worst(logits(ours, tokens[:40]), expected_logits(short, tokens[:40])) < 1e-4


@pytest.mark.parametrize(
    ("family", "config", "tokens"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 1024),
        (
            "llama",
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 64,
                }
            },
            256,
        ),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
        ("llama", {}, 256),
    ],
    ids=["linear", "llama3", "yarn", "default"],
)
def test_the_context_is_what_the_scaling_was_made_for(family: str, config: dict[str, Any], tokens: int) -> None:
    assert FAMILIES[family](_config(family, **config), dtype="float32", block_tokens=16).context_tokens == tokens


def test_a_config_in_the_old_form_is_read_like_one_in_the_new(checkpoints: ModuleType, tmp_path: Path) -> None:
    model = checkpoints.write(tmp_path, "qwen2", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert worst(logits(loaded(tmp_path), prompt()), expected_logits(model, prompt())) < 1e-4


def test_a_gemma_3_of_before_transformers_5_has_two_bases_and_its_scaling_in_full_layers_only(
    checkpoints: ModuleType, tmp_path: Path
) -> None:
    ropes = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    model = checkpoints.write(tmp_path, "gemma3_text", sliding_window=9, num_hidden_layers=4, rope_parameters=ropes,
                              layer_types=["sliding_attention", "full_attention"] * 2)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "layer_types"):
        del config[key]
    config |= {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
               "sliding_window_pattern": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = loaded(tmp_path)
    assert ours.model.context_tokens == 256
    assert worst(logits(ours, prompt()), expected_logits(model, prompt())) < 1e-4


def test_what_a_gemma_leaves_out_means_what_it_means_to_transformers(checkpoints: ModuleType, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for family, kind in (("gemma2", "Gemma2Config"), ("gemma3_text", "Gemma3TextConfig")):
        said = {key: value for key, value in _config(family).items() if key not in (
            "architectures", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")}
        theirs = getattr(transformers, kind)(**{key: value for key, value in said.items() if key != "model_type"})
        ours: Any = FAMILIES[family](said, dtype="float32", block_tokens=16)
        first = ours.attention[0]
        assert (first.heads.size, first.kv_heads.size, first.key_dim) == (
            theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim)
        assert first.scale == theirs.query_pre_attn_scalar**-0.5
        assert first.softcap == (theirs.attn_logit_softcapping if family == "gemma2" else None)
        assert [spec.window for spec in ours.attention] == [
            theirs.sliding_window if name == "sliding_attention" else None for name in theirs.layer_types]
        assert ours.context_tokens == theirs.max_position_embeddings
        assert ours.weights.top["head"].tensors[0].name == "model.embed_tokens.weight"


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 55.42562484741211), ("bfloat16", 55.5)], ids=["float32", "bfloat16"])
def test_embeddings_of_a_gemma_are_scaled_by_a_factor_that_is_rounded_to_the_dtype(dtype: str, factor: float) -> None:
    model = Gemma2(_config("gemma2", hidden_size=3072), dtype=dtype, block_tokens=16)
    assert model.embed_scale is not None
    assert model.embed_scale.factor == factor


def _config(family: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": family, "architectures": ["AnyForCausalLM"], "vocab_size": 131, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
        **({"mixtral": SPARSE, "qwen3_moe": SPARSE, "gpt_oss": OSS, "deepseek_v3": DEEPSEEK}.get(family, {})), **changes,
    }


@pytest.mark.parametrize(
    ("family", "changes", "groups"),
    [
        ("llama", {}, [("full", (0, 1, 2), None)]),
        ("mistral", {}, [("sliding", (0, 1, 2), 4096)]),
        ("mistral", {"sliding_window": None}, [("full", (0, 1, 2), None)]),
        ("qwen2", {"sliding_window": 9}, [("full", (0, 1, 2), None)]),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
            [("full", (0, 1), None), ("sliding", (2,), 9)],
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 9, "layer_types": MIXED[::-1]},
            [("full", (2,), None), ("sliding", (0, 1), 9)],
        ),
    ],
    ids=["llama", "mistral-silent", "mistral-null", "qwen2-off", "qwen3-upper", "qwen2-layer-types"],
)
def test_layers_of_one_lifetime_are_one_state_group(family: str, changes: dict[str, Any], groups: list[Any]) -> None:
    model = FAMILIES[family](_config(family, **changes), dtype="bfloat16", block_tokens=32)
    assert [(group.name, group.layers, group.window) for group in model.states] == groups
    assert all(array.dtype == "bfloat16" and array.heads == 2 for group in model.states for array in group.arrays.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_traces_with_every_declared_weight_in_use(family: str) -> None:
    traced = trace(FAMILIES[family](_config(family, tie_word_embeddings=True), dtype="bfloat16", block_tokens=16))
    ops = {spec.op for spec in traced.specs}
    assert ops >= {"linear", "attention", "add_rms_norm"}
    assert ("qkv_rope_write" in ops) == (family != "deepseek_v3") == ("head_linear" not in ops)
    assert ("gated_linear" in ops, "moe" in ops, "router" in ops) == {
        "mixtral": (False, True, True), "gpt_oss": (False, True, True), "qwen3_moe": (True, True, True), "deepseek_v3": (True, True, True),
    }.get(family, (True, False, False))
    assert [use.weight.tensors[0].name for use in traced.uses].count("model.embed_tokens.weight") == 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama", {"hidden_act": "quick_gelu"}, "'hidden_act'.*quick_gelu.*silu"),
    "rope-type": ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope.*yarn"),
    "rope-key": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "facter": 3}}, "facter.*factor"),
    "rope-factor": ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    "rope-per-layer-type": ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    "partial-rotation": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
    "pretraining-tp": ("llama", {"pretraining_tp": 4}, "pretraining_tp.*4.*set it to 1"),
    "quantized": ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq.*precision of its checkpoint"),
    "remote-code": ("llama", {"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map"),
    "window-in-llama": ("llama", {"sliding_window": 128}, "sliding_window.*128.*mistral"),
    "no-such-layer-type": ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    "too-few-layer-types": ("qwen3", {"layer_types": ["full_attention"]}, "3 layers"),
    "sliding-without-window": ("qwen2", {"layer_types": MIXED}, "use_sliding_window"),
    "window-0": ("mistral", {"sliding_window": 0}, "sliding_window.*at least 1"),
    "mistral-mixed": ("mistral", {"layer_types": MIXED}, "layer_types"),
    "gemma-3-flat-ropes": ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters.*by itself"),
    "gemma-3-capped-scores": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping.*50"),
    "gemma-3-sees-ahead": ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention.*causal"),
    "gemma-2-without-window": ("gemma2", {"sliding_window": None}, "sliding_window.*at least 1"),
    "caps-in-llama": ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping.*30"),
    "other-family": ("llama", {"model_type": "qwen2"}, "model_type.*llama"),
    "classifier": ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    "heads": ("llama", {"num_attention_heads": 5}, "num_attention_heads.*head_dim"),
    "groups": ("llama", {"num_key_value_heads": 4}, "num_key_value_heads.*6 heads"),
    "odd-head-dim": ("llama", {"head_dim": 7}, "head_dim.*even"),
    "text-for-number": ("llama", {"hidden_size": "48"}, "hidden_size.*'48'"),
    "more-than-all-experts": ("qwen3_moe", {**EXPERTS, "num_experts_per_tok": 7}, "num_experts_per_tok.*6 experts"),
    "shared-expert": ("qwen3_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
    "dense-layers": ("qwen3_moe", {**EXPERTS, "mlp_only_layers": "1"}, "mlp_only_layers.*list of integers"),
    "no-experts": ("mixtral", {"num_local_experts": None}, "num_local_experts"),
    "silent-theta": ("mixtral", {"rope_theta": None}, "rope_theta.*must be given"),
    "mixtral-mixed": ("mixtral", {"layer_types": MIXED}, "layer_types"),
    "gpt-oss-gelu": ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act.*gelu.*of their own"),
    "gpt-oss-silent-ropes": ("gpt_oss", {"rope_parameters": None, "rope_theta": 1e4}, "rope_scaling.*must be given"),
    "gpt-oss-window-0": ("gpt_oss", {"sliding_window": 0}, "sliding_window.*at least 1"),
    "deepseek-softmax": ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func.*softmax.*own router"),
    "deepseek-greedy": ("deepseek_v3", {"topk_method": "group_limited_greedy"}, "topk_method.*greedy"),
    "deepseek-every-second": ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq.*2"),
    "deepseek-keys-for-some": ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads.*2.*set it to 6"),
    "deepseek-head-dim": ("deepseek_v3", {"head_dim": 18}, "head_dim.*18.*qk_rope_head_dim"),
    "deepseek-uneven-groups": ("deepseek_v3", {"n_group": 3}, "n_group.*one size"),
    "deepseek-too-few-in-groups": ("deepseek_v3", {"topk_group": 1}, "n_group.*num_experts_per_tok"),
    "deepseek-silent-rank": ("deepseek_v3", {"q_lora_rank": ...}, "q_lora_rank.*or be null"),
    "deepseek-silent-sizes": ("deepseek_v3", {"v_head_dim": None}, "v_head_dim.*must be given"),
    "nothing": ("llama", {"vocab_size": None}, "vocab_size.*None"),
}


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_computed_right_is_refused_by_name_with_a_remedy(
    family: str, changes: dict[str, Any], message: str
) -> None:
    config = {key: value for key, value in _config(family, **changes).items() if value is not ...}
    with pytest.raises(CheckpointError, match=message) as caught:
        FAMILIES[family](config, dtype="float32", block_tokens=16)
    assert "Remedy" in str(caught.value)


def test_experts_stand_one_by_one_in_the_checkpoint_and_are_one_part_of_a_weight(checkpoints: ModuleType, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "qwen3_moe", **EXPERTS)
    source = Checkpoint.open(tmp_path)
    table = Qwen3Moe(source.config, dtype="float32", block_tokens=16).weights
    source.check(table)
    gate, _, down = table.layers[1]["experts"].parts
    assert gate.shape == (6, 40, 48) and down.shape == (6, 48, 40)
    assert [stored.name for stored in gate.stored][2] == "model.layers.1.mlp.experts.2.gate_proj.weight"
    assert table.tensors()["model.layers.1.mlp.experts.2.down_proj.weight"].shape == (48, 40)
    lacking = replace(source, files={name: file for name, file in source.files.items() if ".experts.5.up_proj" not in name})
    with pytest.raises(CheckpointError, match=r"lacks model.layers.0.mlp.experts.5.up_proj.weight"):
        lacking.check(table)


def test_quantized_experts_are_refused(checkpoints: ModuleType, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, "mixtral")
    with pytest.raises(CheckpointError, match=r"experts.0.w1 is quantized \(int8.*Remedy: leave the quantization out"):
        load(Checkpoint.open(tmp_path), Reference(Options()), LoadOptions(dtype="float32", quantization="int8"))


def _register(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    facts = folder / "acme-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[inferplane.models]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_type_names_its_class(family: str) -> None:
    assert model_class(family) is FAMILIES[family]


def test_a_model_from_another_package_needs_only_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from inferplane.model_zoo.llama import Llama\nclass Acme(Llama): model_type = 'acme'\n"
    (tmp_path / "acme_model.py").write_text(source)
    _register(tmp_path, monkeypatch, "acme", "acme_model:Acme")
    assert model_class("acme")(_config("acme"), dtype="float32", block_tokens=16).num_layers == 3


def test_an_unknown_model_type_is_told_with_the_nearest_and_the_known() -> None:
    known = "deepseek_v3, gemma2, gemma3_text, gpt_oss, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe"
    with pytest.raises(ModelNotFound, match=rf"'lama'.*Did you mean 'llama'\? Known: {known}"):
        model_class("lama")


@pytest.mark.parametrize(("value", "message"), [
    ("no_such_module:X", r"'acme' \(no_such_module:X\) cannot be imported.*ModuleNotFoundError.*Remedy"),
    ("json:dumps", r"'acme'.*must name a subclass.*Remedy"),
], ids=["import-error", "no-model"])
def test_a_package_with_a_broken_model_is_named(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(tmp_path, monkeypatch, "acme", value)
    with pytest.raises(ModelError, match=message):
        model_class("acme")
