"""A checkpoint as a GGUF file, for llama.cpp: the `gguf` package's blocks, without a vocabulary."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {
    "embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
"""A module's name in the checkpoint, without `model.` and the layer -> its name in the file."""


def write_gguf(checkpoint: Path, kind: str, to: Path) -> None:
    """kind: BF16, Q8_0 or Q4_0, of every matrix, the tied embedding among them. RoPE is written without its scaling."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(to, config["model_type"])
    _describe(writer, config)
    chosen = gguf.GGMLQuantizationType[kind]
    for name, values in _tensors(checkpoint / "model.safetensors"):
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _interleaved(values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        blocks = gguf.quants.quantize(values, chosen) if values.ndim == 2 else values
        writer.add_tensor(_name(name), blocks, raw_dtype=chosen if values.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, float32 values) of bfloat16 safetensors, one after the other."""
    import numpy as np

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, about in header.items():
        start, end = about["data_offsets"]
        bits = np.fromfile(path, np.uint16, (end - start) // 2, offset=8 + size + start)
        yield name, (bits.astype(np.uint32) << 16).view(np.float32).reshape(about["shape"])


def _name(name: str) -> str:
    *modules, what = name.removeprefix("model.").split(".")
    if modules[0] == "layers":
        return f"blk.{modules[1]}.{NAMES['.'.join(modules[2:])]}.{what}"
    return f"{NAMES['.'.join(modules)]}.{what}"


def _interleaved(weight: Any, heads: int) -> Any:
    """GGUF's Llama rotates neighbouring pairs, where the checkpoint rotates halves."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)
