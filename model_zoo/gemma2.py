"""gemma2: Gemma 2 (HF `Gemma2ForCausalLM`), and what Gemma 3 keeps of it."""
from __future__ import annotations

from typing import Any

from .config import ACTIVATIONS, Fields
from .decoder import FULL, SLIDING, Decoder, Design, layer_kinds, standard

DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "sliding_window": 4096,
}
"""What a config.json of either version means by leaving a key out."""


class Gemma2(Decoder):
    """Sliding and full layers in turn, the first one sliding; attention scores and logits are capped unless the config says null."""

    model_type = "gemma2"
    computed = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})

    @staticmethod
    def design(config: Fields) -> Design:
        config = config.with_defaults(
            **DEFAULTS, max_position_embeddings=8192, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
        return gemma(config, every=2, softcap=optional(config, "attn_logit_softcapping"), rope=config)


def gemma(config: Fields, *, every: int, **special: Any) -> Design:
    """RMS norms around attention and MLP, with weights stored around 0; embeddings times sqrt(hidden_size).

    Every so many layers one is of full attention, unless `layer_types` says which.
    """
    layers, bias = config.integer("num_hidden_layers"), config.flag("attention_bias")
    kinds = layer_kinds(config, [SLIDING if (i + 1) % every else FULL for i in range(layers)])
    return standard(
        config, windows=tuple(config.integer("sliding_window") if kind == SLIDING else None for kind in kinds),
        activation=config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), qkv_bias=bias, out_bias=bias,
        post_norms=True, norm_offset=1.0, embed_scale=config.integer("hidden_size") ** 0.5,
        attention_scale=config.real("query_pre_attn_scalar") ** -0.5, logit_softcap=optional(config, "final_logit_softcapping"),
        **special,
    )


def optional(config: Fields, key: str) -> float | None:
    return config.real(key) if key in config else None
