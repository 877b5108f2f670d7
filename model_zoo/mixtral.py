"""mixtral: Mixtral 8x7B and 8x22B (HF `MixtralForCausalLM`)."""
from __future__ import annotations

from .config import Fields
from .decoder import Design, one_window, standard
from .moe_decoder import Experts, MoeDecoder


class Mixtral(MoeDecoder):
    """Experts in every layer, the kept gates summing to 1; a sliding window only where the config gives one."""

    model_type = "mixtral"

    @staticmethod
    def design(config: Fields) -> Design:
        config.need("rms_norm_eps", "num_key_value_heads", "max_position_embeddings")
        if "rope_parameters" not in config:
            config.need("rope_theta")
        window = config.integer("sliding_window") if "sliding_window" in config else None
        return standard(config, windows=one_window(config, window))

    @staticmethod
    def experts(config: Fields) -> Experts:
        return Experts(
            count=config.integer("num_local_experts"), top_k=config.integer("num_experts_per_tok"),
            mlp=config.integer("intermediate_size"), layers=frozenset(range(config.integer("num_hidden_layers"))),
            router="block_sparse_moe.gate", each="block_sparse_moe.experts.{}", gate="w1", up="w3", down="w2",
        )
