"""gpt_oss: OpenAI's gpt-oss 20b and 120b (HF `GptOssForCausalLM`)."""
from __future__ import annotations

from ..ops import Moe, View, Weight
from .config import Fields
from .decoder import FULL, SLIDING, Design, layer_kinds, standard
from .moe_decoder import Experts, MoeDecoder

EVEN, ODD = (..., slice(0, None, 2)), (..., slice(1, None, 2))


class GptOss(MoeDecoder):
    """Sliding and full layers in turn, a sink for each head, biases everywhere, and experts with a limited SwiGLU in every layer."""

    model_type = "gpt_oss"

    @staticmethod
    def design(config: Fields) -> Design:
        config = config.with_defaults(num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5)
        if "rope_parameters" not in config:
            config.need("rope_theta", "rope_scaling")
        config.refuse("hidden_act", ("silu",), "remove it; the experts of a gpt_oss model have an activation of their own")
        layers, bias = config.integer("num_hidden_layers"), config.flag("attention_bias", True)
        kinds = layer_kinds(config, [FULL if i % 2 else SLIDING for i in range(layers)])
        windows = tuple(config.integer("sliding_window", 128) if kind == SLIDING else None for kind in kinds)
        return standard(
            config, head_dim=64, windows=windows, sinks=True, qkv_bias=bias, out_bias=bias,
            context_tokens=config.integer("max_position_embeddings"),
        )

    @staticmethod
    def experts(config: Fields) -> Experts:
        """The softmax of the kept logits is that of all, made to sum to 1 again."""
        return Experts(
            count=config.integer("num_local_experts", 128), top_k=config.integer("num_experts_per_tok", 4),
            mlp=config.integer("intermediate_size"), layers=frozenset(range(config.integer("num_hidden_layers"))),
            router="mlp.router", bias=True, limit=config.real("swiglu_limit", 7.0), alpha=config.real("swiglu_alpha", 1.702),
        )

    def _expert_weights(self, spec: Moe, at: str) -> Weight:
        """All in one, inputs before outputs: gates and ups alternate in gate_up_proj [experts, embed, 2 * mlp]."""
        experts, embed, mlp = spec.experts.size, spec.embed, spec.mlp.size
        gate_up, down = f"{at}.mlp.experts.gate_up_proj", f"{at}.mlp.experts.down_proj"
        shape, biases = (experts, embed, 2 * mlp), (experts, 2 * mlp)
        return spec.weight(f"{gate_up} (gate)", f"{gate_up} (up)", f"{down} (turned)").within(
            View(gate_up, shape, EVEN, crosswise=True), View(gate_up, shape, ODD, crosswise=True),
            View(down, (experts, mlp, embed), crosswise=True),
            View(f"{gate_up}_bias", biases, EVEN), View(f"{gate_up}_bias", biases, ODD), View(f"{down}_bias", (experts, embed)),
        )
