"""qwen3: the dense models of Qwen 3 (HF `Qwen3ForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Decoder, Design, qwen_windows, standard


class Qwen3(Decoder):
    """An RMS norm on each head of q and k before they are rotated; heads of 128 unless the config says otherwise."""

    model_type = "qwen3"

    @staticmethod
    def design(config: Fields) -> Design:
        bias = config.flag("attention_bias")
        return standard(config, head_dim=128, qkv_bias=bias, out_bias=bias, qk_norm=True, windows=qwen_windows(config))
