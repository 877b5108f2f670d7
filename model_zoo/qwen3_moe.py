"""qwen3_moe: the mixtures of experts of Qwen 3 (HF `Qwen3MoeForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Design, one_window, standard
from .moe_decoder import Experts, MoeDecoder


class Qwen3Moe(MoeDecoder):
    """Qwen 3's norms on heads, one window for all layers, and experts in every `decoder_sparse_step`-th layer but `mlp_only_layers`."""

    model_type = "qwen3_moe"

    @staticmethod
    def design(config: Fields) -> Design:
        config.need("rms_norm_eps", "num_key_value_heads", "max_position_embeddings")
        config.refuse("shared_expert_intermediate_size", (0,), "only models without a shared expert are known here")
        bias = config.flag("attention_bias")
        window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window") else None
        return standard(config, qkv_bias=bias, out_bias=bias, qk_norm=True, windows=one_window(config, window))

    @staticmethod
    def experts(config: Fields) -> Experts:
        layers, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
        dense = config.integers("mlp_only_layers")
        return Experts(
            count=config.integer("num_experts" if "num_experts" in config else "num_local_experts"),
            top_k=config.integer("num_experts_per_tok"), mlp=config.integer("moe_intermediate_size"),
            renormalize=config.flag("norm_topk_prob"),
            layers=frozenset(i for i in range(layers) if (i + 1) % step == 0 and i not in dense),
        )
