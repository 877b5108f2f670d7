"""Small random checkpoints, written by transformers itself: what the models are compared with."""
from __future__ import annotations

from pathlib import Path
from typing import Any

SMALL = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}


def build(family: str, *, seed: int = 0, **config: Any) -> Any:
    """A float32 transformers model whose biases, norms and corrections are random too, unlike a fresh one's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if family in ("qwen3", "gemma2", "gemma3_text", "gpt_oss"):
        config = {"head_dim": 8, **config}
    torch.manual_seed(seed)
    made = AutoConfig.for_model(family, **(SMALL | config))
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
    return model


def write(folder: Path, family: str, *, seed: int = 0, **config: Any) -> Any:
    """The model, saved into `folder` with config.json and safetensors."""
    model = build(family, seed=seed, **config)
    model.save_pretrained(folder)
    return model
