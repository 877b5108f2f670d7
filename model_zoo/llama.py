"""llama: Llama 1 to 3, and the many models that keep its model_type (HF `LlamaForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Decoder, Design, standard


class Llama(Decoder):
    """Full attention in every layer; biases where the config says so."""

    model_type = "llama"

    @staticmethod
    def design(config: Fields) -> Design:
        config.refuse("sliding_window", (), "set it to null if the model was trained without a window, or use model_type mistral")
        config.refuse("layer_types", (), "remove it; every layer of a llama model sees the whole context")
        bias = config.flag("attention_bias")
        return standard(config, qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias"))
