"""GGUF: Q8_0, Q4_0 and Q6_K as our schemes, and a config.json out of the file's own metadata.

Q8_0 is 32 codes under a float16 scale, Q4_0 the same with nibbles (the lower ones first, less 8), Q6_K sixteen codes of 6 bits under an
int8 scale, and 256 of them under a float16 one: the product of both is exact in float32.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...ops import Quantized, Scheme
from .format import Array, Format, Stored
from .gguf_file import GgufFile
from .packing import centred

SCHEMES = {
    "Q8_0": Scheme("int8", group=32, scales="float16"), "Q4_0": Scheme("int4", group=32, scales="float16"),
    "Q6_K": Scheme("int8", group=16),
}
FAMILIES = ("llama", "qwen2", "qwen3")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How every Llama 3.1 and 3.2 scales its rotary embedding, but for the factor, which the file holds."""


class Gguf(Format):
    """Each tensor says itself how it is stored."""

    method = "gguf"
    ignored = ("rope_freqs.weight",)

    def __init__(self, file: GgufFile) -> None:
        super().__init__({}, dict.fromkeys(file.entries, file))
        self.file = file

    def scheme(self, module: str) -> Scheme | None:
        kind = self.file.kinds.get(f"{module}.weight")
        return SCHEMES.get(kind.name) if kind else None

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        kind, (outputs, inputs) = self.file.kinds[f"{module}.weight"], shape
        return {f"{module}.weight": Stored(((outputs, inputs * kind.bytes // kind.values),), ("uint8",))}

    def weight(self, module: str) -> Quantized:
        name = f"{module}.weight"
        kind, stored = self.file.kinds[name], self.file.tensor(name)
        return READERS[kind.name](stored.reshape(len(stored), -1, kind.bytes))


def _q8_0(blocks: Array) -> Quantized:
    """blocks [rows, groups, 34]."""
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Quantized(codes.reshape(len(blocks), -1), _halves(blocks[..., :2]))


def _q4_0(blocks: Array) -> Quantized:
    """blocks [rows, groups, 18]: the lower nibbles are the first 16 codes."""
    codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], -1)
    return Quantized(centred(codes, 4).reshape(len(blocks), -1), _halves(blocks[..., :2]))


def _q6_k(blocks: Array) -> Quantized:
    """blocks [rows, groups, 210]: 128 bytes of low nibbles, 64 of two high bits each, 16 scales, one scale of them all."""
    rows = len(blocks)
    low = blocks[..., :128].reshape(rows, -1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    high = blocks[..., 128:192].reshape(rows, -1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    codes = (low.reshape(rows, -1, 2, 4, 32) | high << 4).view(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    scales *= np.ascontiguousarray(blocks[..., 208:]).view(np.float16).astype(np.float32)
    return Quantized(codes.reshape(rows, -1), scales.reshape(rows, -1))


READERS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q6_K": _q6_k}


def _halves(pairs: Array) -> Array:
    """[rows, groups, 2] of bytes -> [rows, groups] float16."""
    return np.ascontiguousarray(pairs).view(np.float16)[..., 0]


def config_of(file: GgufFile) -> dict[str, Any]:
    """What config.json would say. Raises `CheckpointError` for an architecture or a scaling that is not known."""
    said, arch = file.metadata, file.metadata.get("general.architecture")
    if arch not in FAMILIES:
        raise _error(file, f"is of the architecture {arch!r}; known: {', '.join(FAMILIES)}", "put the model's own config.json beside it")

    def of(key: str, default: Any = None) -> Any:
        value = said.get(f"{arch}.{key}", default)
        if value is None:
            raise _error(file, f"has no {arch}.{key} in its metadata", "put the model's own config.json beside it")
        return value

    if said.get(f"{arch}.attention.sliding_window"):
        raise _error(file, "has a sliding window", "put the model's own config.json beside it")
    heads = of("attention.head_count")
    embedding = file.entries.get("model.embed_tokens.weight")
    config = {
        "model_type": arch, "vocab_size": embedding.shape[0] if embedding else 0, "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"), "num_hidden_layers": of("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads), "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "head_dim": of("attention.key_length", of("embedding_length") // heads), "max_position_embeddings": of("context_length"),
        "rope_theta": of("rope.freq_base", 10000.0), "tie_word_embeddings": "lm_head.weight" not in file.entries,
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"), "eos_token_id": _ends(said),
        "attention_bias": arch != "qwen2" and "model.layers.0.self_attn.q_proj.bias" in file.entries,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in file.entries,
    }
    scaling = _scaling(file, arch, config["head_dim"])
    return {key: value for key, value in config.items() if value is not None} | ({"rope_scaling": scaling} if scaling else {})


def _ends(said: Mapping[str, Any]) -> list[int] | None:
    ends = [said[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in said]
    return list(dict.fromkeys(ends)) or None


def _scaling(file: GgufFile, arch: str, head_dim: int) -> dict[str, Any] | None:
    """By the keys of linear and yarn, or by the divisors of each frequency that Llama 3's scaling leaves in rope_freqs."""
    kind, beside = file.metadata.get(f"{arch}.rope.scaling.type"), "put the model's own config.json beside it"
    if "rope_freqs.weight" in file.entries:
        divisors = file.tensor("rope_freqs.weight").astype(np.float64)
        scaling = {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3}
        base = file.metadata.get(f"{arch}.rope.freq_base", 10000.0)
        if not np.allclose(divisors, _llama3(base ** (-np.arange(0, head_dim, 2) / head_dim), scaling), rtol=1e-3):
            raise _error(file, "scales its rotary embedding in its own way (rope_freqs)", beside)
        return scaling
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": file.metadata.get(f"{arch}.rope.scaling.factor")}
    raise _error(file, f"scales its rotary embedding by {kind!r}", beside)


def _llama3(frequencies: Array, scaling: Mapping[str, Any]) -> Array:
    """The divisor of each frequency, by Llama 3.1's rule: none for short waves, all of it for long ones, smooth between."""
    waves = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _error(file: GgufFile, found: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{file.path} {found}. Remedy: {remedy}.")
