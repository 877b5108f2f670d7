"""Small quantized checkpoints, written by the published layout of each format, and the floats that they stand for."""
from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from inferplane.core.models import model_class
from inferplane.ops import Quantized, Scheme
from inferplane.ops.quantize import dequantized, quantize
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 104, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "dtype": "float32", "eos_token_id": 5,
}
PROMPT = [3, 1, 4, 1, 5, 92, 6, 53, 58, 97]


def floats(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Random weights of a model, by the names of its checkpoint."""
    random = np.random.default_rng(seed)
    needed = model_class(config["model_type"])(config, dtype="float32", block_tokens=16).weights.tensors()
    return {
        name: random.normal("norm" in name, 0.2 if "norm" in name else 1.5 * tensor.shape[-1] ** -0.5, tensor.shape).astype(np.float32)
        for name, tensor in needed.items()
    }


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def float_checkpoint(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Array]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def write(
    folder: Path, scheme: Scheme, settings: Mapping[str, Any], pack: Callable[[Quantized], Mapping[str, Array]], *,
    config: Mapping[str, Any] = CONFIG, linear: Callable[[str], bool] = is_linear,
) -> tuple[Path, Path]:
    """The quantized checkpoint, and one of the floats that its codes stand for."""
    stored: dict[str, Array] = {}
    meant: dict[str, Array] = {}
    for name, value in floats(config).items():
        if linear(name):
            codes = quantize(value, scheme)
            meant[name] = dequantized(codes, scheme)
            module = name.removesuffix("weight")
            stored |= {module + part: np.ascontiguousarray(array) for part, array in pack(codes).items()}
        else:
            stored[name] = meant[name] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    save_file(stored, folder / "model.safetensors")
    return folder, float_checkpoint(folder / "floats", config, meant)


def packed(values: Array, bits: int, axis: int) -> Array:
    """Codes from 0 on, packed along an axis: the first in the lowest bits of an int32."""
    values = np.moveaxis(np.asarray(values).astype(np.uint32), axis, -1)
    held = 32 // bits
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % held)])
    words = values.reshape(*values.shape[:-1], -1, held) << (np.arange(held, dtype=np.uint32) * bits)
    return np.moveaxis(np.bitwise_or.reduce(words, -1).view(np.int32), -1, axis)


def gptq(bits: int, *, v2: bool = False, order: Array | None = None) -> Callable[[Quantized], dict[str, Array]]:
    def pack(weight: Quantized) -> dict[str, Array]:
        middle = 2 ** (bits - 1)
        zeros = (np.zeros(weight.scales.shape, np.int32) if weight.zeros is None else weight.zeros.astype(np.int32)) + middle
        inputs, groups = weight.shape[1], weight.scales.shape[1]
        size = -(-inputs // groups)
        return {
            "qweight": packed(weight.codes.T.astype(np.int32) + middle, bits, 0), "scales": weight.scales.T,
            "qzeros": packed(zeros.T - (0 if v2 else 1) & 2**bits - 1, bits, 1),
            "g_idx": (np.arange(inputs) // size).astype(np.int32) if order is None else order[:inputs].astype(np.int32),
        }

    return pack


def awq(weight: Quantized) -> dict[str, Array]:
    def interleaved(values: Array) -> Array:
        eights = (values.T.astype(np.int32) + 8).reshape(values.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return packed(eights.reshape(values.shape[1], -1), 4, 1)

    assert weight.zeros is not None
    return {"qweight": interleaved(weight.codes), "qzeros": interleaved(weight.zeros), "scales": weight.scales.T}


def pack_quantized(bits: int) -> Callable[[Quantized], dict[str, Array]]:
    def pack(weight: Quantized) -> dict[str, Array]:
        middle = 2 ** (bits - 1)
        zeros = {} if weight.zeros is None else {"weight_zero_point": packed(weight.zeros.astype(np.int32) + middle, bits, 0)}
        return zeros | {
            "weight_packed": packed(weight.codes.astype(np.int32) + middle, bits, 1), "weight_scale": weight.scales,
            "weight_shape": np.array(weight.shape, np.int64),
        }

    return pack


def plain_quantized(weight: Quantized) -> dict[str, Array]:
    return {"weight": weight.codes, "weight_scale": weight.scales if weight.scales.size > 1 else weight.scales.reshape(1)}


def fp8(weight: Quantized) -> dict[str, Array]:
    return {"weight": weight.codes, "weight_scale_inv": weight.scales}


def compressed(kind: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"dynamic": False, **weights}, "input_activations": activations, "output_activations": None,
        }}, **more,
    }


BLOCKS = {"Q8_0": (8, Scheme("int8", group=32, scales="float16")), "Q4_0": (2, Scheme("int4", group=32, scales="float16"))}
GGML = {"F32": (0, np.float32), "F16": (1, np.float16), "BF16": (30, ml_dtypes.bfloat16)}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf(path: Path, config: Mapping[str, Any], kinds: Callable[[str], str], metadata: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Writes the file; gives the floats that it stands for."""
    meant: dict[str, Array] = {}
    entries: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for name, value in floats(config).items():
        kind = kinds(name)
        number, data, meant[name] = _blocks(_interleaved(name, value, config), kind)
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            meant[name] = _blocks(value, kind)[2]
        module, _, what = name.rpartition(".")
        layer, at = ("", module) if ".layers." not in module else (f"blk.{module.split('.')[2]}.", ".".join(module.split(".")[3:]))
        entries.append((f"{layer}{NAMES[at]}.{what}", value.shape, number, data))
    said = gguf_metadata(config) if metadata is None else metadata
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(said)) + b"".join(_pair(key, value) for key, value in said.items())
    offset, body = 0, b""
    for name, shape, number, data in entries:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, offset)
        body += data + bytes(-len(data) % 32)
        offset = len(body)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return meant


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    arch = config["model_type"]
    keys = {
        "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps", "context_length": "max_position_embeddings", "rope.freq_base": "rope_theta",
    }
    said = {f"{arch}.{key}": config[name] for key, name in keys.items()}
    return {"general.architecture": arch, **said, "tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.tokens": ["a", "b"]}


def _interleaved(name: str, value: Array, config: Mapping[str, Any]) -> Array:
    """llama's queries and keys as ggml's converter reorders them."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if config["model_type"] != "llama" or heads is None:
        return value
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _blocks(value: Array, kind: str) -> tuple[int, bytes, Array]:
    if kind in GGML:
        number, dtype = GGML[kind]
        return number, value.astype(dtype).tobytes(), value.astype(dtype).astype(np.float32)
    number, scheme = BLOCKS[kind]
    weight = quantize(value, scheme)
    codes = weight.codes.reshape(len(value), -1, 32)
    if kind == "Q4_0":
        shifted = (codes + 8).astype(np.uint8)
        held = shifted[..., :16] | shifted[..., 16:] << 4
    else:
        held = codes.view(np.uint8)
    scales = weight.scales[..., None].view(np.uint8)
    return number, np.concatenate([scales, held], -1).tobytes(), dequantized(weight, scheme)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _pair(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, list) and isinstance(value[0], int):
        return _text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    if isinstance(value, list):
        return _text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
    return _text(key) + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))
