"""Whole models, tiny and random: logits near those of float64, greedy tokens equal to them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...core.loader import Loaded, LoadOptions, load
from ...core.score import logits
from ...ops import tolerance
from ..address import Address
from ..case import Failed, Family, Params
from ..models import RandomSource, greedy, load_on
from ..oracle import Expected
from ..problem import Array
from ..rig import Rig
from .make import DTYPE, YES_NO

FACTOR, DEPTH = 2.0, 64
"""Errors of logits: at most so many times those of the reference in the same dtype, which count as `DEPTH` float32 roundings at least."""
TOKENS, SPLIT, STEPS = 40, 23, 32
LENGTH = 128
"""Tokens that a model is loaded for; two scalings stretch it to that from the half."""
ARCHITECTURES = ("llama", "llama-bias", "qwen2", "qwen3", "mistral")
HEADS = ("4/4", "4/2", "7/1", "14/2", "3/3")
WINDOWS = ("none", "5", "16", "33")
GEMMA: dict[str, dict[str, Any]] = {
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 9.0},
    "gemma3_text": {"sliding_window_pattern": 2, "rope_local_base_freq": 300.0},
}
"""Their first layer slides. Embeddings are scaled by the root of 64, which no dtype rounds."""
LATENT: dict[str, Any] = {
    "first_k_dense_replace": 1, "moe_intermediate_size": 40, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "num_nextn_predict_layers": 0,
}
"""Of a deepseek_v3: its second layer has experts unless the case says otherwise."""
ORIGINAL = "original_max_position_embeddings"
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 24},
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 24},
}


def config(params: Params) -> dict[str, Any]:
    """A config.json from a case's parameters; what they leave open is small and odd."""
    said = params.values
    heads, kv_heads = params.pair("heads") if "heads" in said else (4, 2)
    rope = said.get("rope", "default")
    length = LENGTH // 2 if rope in ("linear", "dynamic") else LENGTH
    kind, _, bias = said["model"].partition("-")
    made = {
        "model_type": kind, "num_hidden_layers": 2, "hidden_size": 56, "intermediate_size": 72, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": int(said.get("dim", 64)), "vocab_size": int(said.get("vocab", 97)),
        "tie_word_embeddings": said.get("tied") == "yes", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": length,
        **({"attention_bias": True, "mlp_bias": True} if bias else {}), **_window(kind, said.get("window", "none")),
        **_experts(said),
    }
    if kind in GEMMA:
        made |= {"hidden_size": 64, "query_pre_attn_scalar": 48, **GEMMA[kind]}
    made |= {"rope_scaling": ROPES[rope]} if ROPES[rope] else {}
    return made | _latent(params) if kind == "deepseek_v3" else made


def _window(kind: str, window: str) -> dict[str, Any]:
    """Every layer of a mistral or mixtral has the window, the second one of a qwen, the first one of a gemma or gpt_oss."""
    if kind in (*GEMMA, "gpt_oss"):
        return {"sliding_window": int(window)}
    if kind in ("mistral", "mixtral"):
        return {"sliding_window": None if window == "none" else int(window)}
    return {} if window == "none" else {"use_sliding_window": True, "sliding_window": int(window), "max_window_layers": 1}


def _experts(said: Mapping[str, str]) -> dict[str, Any]:
    """In every layer of a mixtral, in the second one of a qwen3_moe."""
    if "experts" not in said:
        return {}
    return {
        "num_local_experts": int(said["experts"]), "num_experts_per_tok": int(said["top_k"]), "moe_intermediate_size": 40,
        "norm_topk_prob": said["renormalize"] == "yes", "decoder_sparse_step": 2,
    }


def _latent(params: Params) -> dict[str, Any]:
    """Latent attention of the sizes of a case; YaRN stretches scores, too."""
    rank, turned = params.pair("latent")
    made = {
        **LATENT, "num_key_value_heads": params.int("heads"), "head_dim": turned, "kv_lora_rank": rank, "qk_rope_head_dim": turned,
        "qk_nope_head_dim": 24, "v_head_dim": 20, "q_lora_rank": None if params["query_rank"] == "none" else params.int("query_rank"),
    }
    if params["rope"] == "yarn":
        made["rope_scaling"] = {**ROPES["yarn"], "mscale": 1.0, "mscale_all_dim": 0.8}
    return made if params.flag("sparse") else {**made, "first_k_dense_replace": 2}


def _single_experts(params: Params) -> bool:
    """In a narrow dtype, gates that nearly tie choose other experts."""
    return params["dtype"] == "float32" or not params.flag("sparse")


def _chosen(params: Params) -> bool:
    """A mixtral always renormalizes."""
    return params.int("top_k") <= params.int("experts") and (params["model"] != "mixtral" or params.flag("renormalize"))


def _together(params: Params) -> bool:
    return not params["model"].startswith("llama") or params["window"] == "none"


def _crossing_ties(params: Params) -> bool:
    """Activations are quantized in the narrow dtypes only: a naive run then crosses as many ties, and in float32 it may cross none."""
    return params["dtype"] != "float32" or ".a" not in params["scheme"]


def _logits(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """In one step, and in two: both as near to float64 as the reference is, but for the factor."""
    source = RandomSource(config(params), address.seed, params["dtype"])
    loaded = load_on(rig, source, dtype=params["dtype"], length=LENGTH)
    tokens = address.random().integers(0, loaded.model.vocab_size, TOKENS).tolist()

    def compute() -> Expected:
        exact, usual = (logits(_reference(rig, source, dtype), tokens) for dtype in ("float64", params["dtype"]))
        return Expected([exact.astype(np.float64)], ["float32"], [usual])

    expected = rig.oracle.kept(address, compute)
    assert expected.naive is not None
    for what, chunk in (("in one step", None), (f"in steps of {SPLIT} and {TOKENS - SPLIT} tokens", SPLIT)):
        found = logits(loaded, tokens, chunk_tokens=chunk)
        if found.dtype != np.float32:
            raise Failed(f"{what}: logits are {found.dtype}, and must be float32")
        reason = tolerance.naive_relative(found, expected.naive[0], expected.results[0], factor=FACTOR, depth=DEPTH)
        if reason is not None:
            raise Failed(f"logits {what} {reason}")
    return _kernels(loaded)


def _quantized(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Against the same codes of weights in float64."""
    scheme = params["scheme"].replace(".", ":")
    source = RandomSource(config(params), address.seed, params["dtype"])
    loaded = load_on(rig, source, dtype=params["dtype"], length=LENGTH, quantization=scheme)
    tokens = address.random().integers(0, loaded.model.vocab_size, TOKENS).tolist()

    def compute() -> Expected:
        exact, usual = (logits(_reference(rig, source, dtype, scheme), tokens) for dtype in ("float64", params["dtype"]))
        return Expected([exact.astype(np.float64)], ["float32"], [usual])

    expected = rig.oracle.kept(address, compute)
    assert expected.naive is not None
    reason = tolerance.naive_relative(logits(loaded, tokens), expected.naive[0], expected.results[0], factor=FACTOR, depth=DEPTH)
    if reason is not None:
        raise Failed(f"logits {reason}")
    return _kernels(loaded)


def _greedy(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Token after token, each handed on by the device; up to the first step that float64 itself leaves open."""
    source = RandomSource(config(params), address.seed)
    loaded = load_on(rig, source, length=LENGTH)
    prompt = address.random().integers(0, loaded.model.vocab_size, params.int("prompt")).tolist()

    def compute() -> Expected:
        exact = _reference(rig, source, "float64")
        tokens = greedy(exact, prompt, STEPS)
        return Expected([tokens, logits(exact, [*prompt, *tokens[:-1]])[len(prompt) - 1 :].astype(np.float64)], ["int32", "float64"])

    wanted, scores = rig.oracle.kept(address, compute).results
    found = greedy(loaded, prompt, STEPS)
    differing = np.flatnonzero(found != wanted)
    if len(differing) and not open_choice(scores[differing[0]], int(found[differing[0]]), int(wanted[differing[0]])):
        step = int(differing[0])
        raise Failed(
            f"greedy token {step} of {STEPS} is {found[step]} instead of {wanted[step]}; found {found.tolist()}, expected "
            f"{wanted.tolist()}",
        )
    return _kernels(loaded)


def open_choice(scores: Array, found: int, wanted: int) -> bool:
    """Whether the two tokens are nearer to each other than float32 can tell."""
    if not 0 <= found < len(scores):
        return False
    return bool(scores[wanted] - scores[found] <= FACTOR * DEPTH * 2.0**-24 * np.abs(scores).max())


def _reference(rig: Rig, source: RandomSource, dtype: str, quantization: str | None = None) -> Loaded:
    return load(source, rig.oracle.platform, LoadOptions(dtype=dtype, max_model_len=LENGTH, quantization=quantization))


def _kernels(loaded: Loaded) -> tuple[str, ...]:
    return tuple(dict.fromkeys(choice.name for choice in loaded.resolution))


def _family(name: str, axes: dict[str, Sequence[str]], run: Callable[[Params, Address, Rig], tuple[str, ...]]) -> Family:
    return Family(name, 3, axes, run, _together if "window" in axes else lambda params: True)


FAMILIES = [
    _family("graph.logits", {
        "model": ARCHITECTURES, "dtype": DTYPE, "heads": HEADS, "dim": ("32", "64", "80", "128"), "window": WINDOWS,
        "vocab": ("97", "128", "130", "257"), "tied": YES_NO,
    }, _logits),
    _family("graph.rope", {"model": ("llama", "qwen3", "mistral"), "dtype": DTYPE, "rope": tuple(ROPES), "dim": ("64", "80")}, _logits),
    Family("graph.gemma", 3, {
        "model": tuple(GEMMA), "dtype": DTYPE, "heads": ("4/2", "7/1"), "dim": ("32", "80"), "window": ("5", "33"), "tied": YES_NO,
    }, _logits),
    Family("graph.quantized", 3, {
        "model": ("llama", "qwen2", "qwen3"), "dtype": DTYPE, "heads": ("4/2", "14/2"),
        "scheme": ("int8.g64", "int8.a8", "int8.a8g128", "int4.g32.float16", "int4.g32.float16.a8g32", "float8_e4m3fn.g128.r128",
                   "float8_e4m3fn.g128.r128.af8g128"),
    }, _quantized, _crossing_ties),
    Family("graph.experts", 3, {
        "model": ("mixtral", "qwen3_moe"), "dtype": ("float32",), "experts": ("2", "5", "8"), "top_k": ("1", "2", "4"),
        "renormalize": YES_NO, "window": ("none", "16"),
    }, _logits, _chosen),
    Family("graph.gpt_oss", 3, {
        "model": ("gpt_oss",), "dtype": ("float32",), "heads": ("4/2", "7/1"), "dim": ("32", "80"), "experts": ("2", "5"),
        "top_k": ("1", "2"), "renormalize": ("yes",), "window": ("5", "33"), "rope": ("yarn",),
    }, _logits),
    Family("graph.latent", 3, {
        "model": ("deepseek_v3",), "dtype": DTYPE, "heads": ("4", "3"), "latent": ("24/8", "64/32", "33/16"), "query_rank": ("none", "20"),
        "sparse": YES_NO, "rope": ("default", "yarn"),
    }, _logits, _single_experts),
    _family("graph.greedy", {
        "model": ("llama", "qwen2", "qwen3", "mistral"), "heads": ("4/4", "14/2", "7/1"), "window": WINDOWS[:3],
        "prompt": ("1", "16", "31"),
    }, _greedy),
]
