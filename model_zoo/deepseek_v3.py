"""deepseek_v3: DeepSeek V3 and R1 (HF `DeepseekV3ForCausalLM`), after DeepSeek-AI 2024 (arXiv 2412.19437)."""
from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

from ..ops import Attention, Concat, Dim, HeadLinear, Linear, RmsNorm, Rope, Split, StateArray, View, Weight, WriteKV
from .base import Precision
from .config import AGAIN, Fields
from .decoder import Design, standard
from .moe_decoder import Experts, MoeDecoder
from .rotary import Rotary

EPSILON = 1e-6
"""Of the norms within attention, whatever rms_norm_eps says."""
ONLY = "use a checkpoint of DeepSeek V3's own router"


class DeepseekV3(MoeDecoder):
    """Latent attention; behind the first dense layers, experts by sigmoid gates among the best groups, and one that all tokens share."""

    model_type = "deepseek_v3"
    computed = frozenset({"auto_map"})

    @staticmethod
    def design(config: Fields) -> Design:
        config.need("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "max_position_embeddings")
        if "q_lora_rank" not in config.values:
            raise config.error("q_lora_rank", "must be given, or be null", AGAIN)
        rope, heads = config.integer("qk_rope_head_dim"), config.integer("num_attention_heads")
        config.refuse("head_dim", (rope,), "remove it; a head's sizes are qk_nope_head_dim, qk_rope_head_dim and v_head_dim")
        config.refuse("num_key_value_heads", (heads,), f"set it to {heads}; latent attention has one latent key for all heads")
        return standard(
            config, head_dim=rope, context_tokens=config.integer("max_position_embeddings"), out_bias=config.flag("attention_bias"),
            attention_scale=(config.integer("qk_nope_head_dim") + rope) ** -0.5 * _stretch(config) ** 2,
        )

    @staticmethod
    def experts(config: Fields) -> Experts:
        for key, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
            config.refuse(key, (known,), ONLY)
        layers, dense = config.integer("num_hidden_layers"), config.integer("first_k_dense_replace", 3, least=0)
        count, top_k, mlp = (config.integer(key) for key in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"))
        groups, kept = config.integer("n_group"), config.integer("topk_group")
        if count % groups or kept > groups or top_k > kept * (count // groups):
            raise config.error("n_group", f"must make groups of one size of {count} experts, whose {kept} best (topk_group) have "
                               f"{top_k} (num_experts_per_tok) among them", AGAIN)
        return Experts(
            count=count, top_k=top_k, mlp=mlp, layers=frozenset(range(dense, layers)), shared=mlp * config.integer("n_shared_experts", 1),
            sigmoid=True, correction=True, groups=groups, top_groups=kept,
            renormalize=config.flag("norm_topk_prob", True), scale=config.real("routed_scaling_factor", 2.5),
        )

    def _ignored_modules(self, fields: Fields) -> tuple[str, ...]:
        """Layers behind the last predict further tokens (MTP); serving goes without."""
        more = fields.integer("num_nextn_predict_layers", 1, least=0)
        return tuple(f"model.layers.{self.num_layers + i}." for i in range(more))

    def _add_attention(self, fields: Fields, d: Design, turn: Rotary, local: Rotary, precision: Precision) -> Mapping[str, StateArray]:
        """A cell holds the latent keys: what every head's keys and values are made of, and a key that turns."""
        nope, rope, values = (fields.integer(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank, dtype = fields.integer("kv_lora_rank"), self.dtype
        query_rank = fields.integer("q_lora_rank") if "q_lora_rank" in fields else None
        embed, heads, one = Dim(d.embed, "embed"), Dim(d.heads, "heads"), Dim(1)
        q_size, bias = Dim(d.heads * (nope + rope), "heads"), fields.flag("attention_bias")
        self.head_sizes, self.rank = (nope, values), rank

        def linears(module: str, inputs: Dim, output: Dim, bias: bool = False) -> list[Linear]:
            return self._linears(f"self_attn.{module}", inputs, (output,), bias, precision)

        def norm(size: int) -> RmsNorm:
            return RmsNorm(size=size, epsilon=EPSILON, dtype=dtype)

        def turned(heads: Dim) -> Rope:
            interleaved = fields.flag("rope_interleave", True)
            return Rope(heads=heads, head_dim=rope, frequencies=turn.frequencies, dtype=dtype, scale=turn.factor, interleaved=interleaved)

        if query_rank is None:
            self.query_norm, self.query = None, linears("q_proj", embed, q_size)
        else:
            self.query_down = linears("q_a_proj", embed, Dim(query_rank), bias)
            self.query_norm, self.query = norm(query_rank), linears("q_b_proj", Dim(query_rank), q_size)
        self.key_down, self.key_norm = linears("kv_a_proj_with_mqa", embed, Dim(rank + rope), bias), norm(rank)
        self.query_parts, self.key_parts = Split(sizes=(nope, rope), dtype=dtype), Split(sizes=(rank, rope), dtype=dtype)
        self.joined = Concat(sizes=(rank, rope), dtype=dtype)
        self.query_rope, self.key_rope = turned(heads), turned(one)
        stored = [precision.restored(f"model.layers.{i}.self_attn.kv_b_proj") for i in range(self.num_layers)]
        self.absorb = [HeadLinear(heads=heads, input=nope, output=rank, dtype=dtype, stored=how) for how in stored]
        self.open = [HeadLinear(heads=heads, input=rank, output=values, dtype=dtype, stored=how) for how in stored]
        self.write = WriteKV(kv_heads=one, key_dim=rank + rope, value_dim=rank, dtype=dtype, kv_dtype=precision.kv_dtype, latent=True)
        assert d.attention_scale is not None
        self.latent_attention = Attention(
            heads=heads, kv_heads=one, key_dim=rank + rope, value_dim=rank, scale=d.attention_scale, dtype=dtype,
            kv_dtype=precision.kv_dtype, latent=True,
        )
        self.out = linears("o_proj", Dim(d.heads * values, "heads"), embed, d.out_bias)
        return self.write.arrays

    def _attention_weights(self, i: int, at: str) -> dict[str, Weight]:
        """kv_b_proj [heads * (nope + values), rank] stands twice: its keys are for queries, its values for what comes out."""
        at, (nope, values) = f"{at}.self_attn", self.head_sizes
        heads, name = self.absorb[i].heads.size, f"{at}.kv_b_proj.weight"
        shape, split = (heads * (nope + values), self.rank), (heads, nope + values, self.rank)
        keys = View(name, shape, (slice(None), slice(0, nope)), split, crosswise=True)
        down = {} if self.query_norm is None else {
            "query_down": self.query_down[i].weight(f"{at}.q_a_proj"), "query_norm": self.query_norm.weight(f"{at}.q_a_layernorm"),
        }
        return {
            **down, "query": self.query[i].weight(f"{at}.q_proj" if self.query_norm is None else f"{at}.q_b_proj"),
            "key_down": self.key_down[i].weight(f"{at}.kv_a_proj_with_mqa"), "key_norm": self.key_norm.weight(f"{at}.kv_a_layernorm"),
            "absorb": self.absorb[i].weight(f"{name} (keys)").within(keys),
            "open": self.open[i].weight(f"{name} (values)").within(View(name, shape, (slice(None), slice(nope, None)), split)),
            "out": self.out[i].weight(f"{at}.o_proj"),
        }

    def _attend(self, i: int, ops: Any, h: Any, w: Any, batch: Any, state: Any) -> Any:
        """Section 2.1.1, with keys and values never made: q^T W k = (W^T q)^T k, and a sum of W v is W by the sum of v."""
        tokens = h.shape[0]
        latent, key = ops.split(self.key_parts, ops.linear(self.key_down[i], h, w.key_down, batch))
        latent = ops.rms_norm(self.key_norm, latent, w.key_norm).reshape(tokens, 1, -1)
        key = ops.rope(self.key_rope, key.reshape(tokens, 1, -1), batch)
        ops.write_kv(self.write, ops.concat(self.joined, latent, key), None, state, batch)

        if self.query_norm is not None:
            h = ops.rms_norm(self.query_norm, ops.linear(self.query_down[i], h, w.query_down, batch), w.query_norm)
        q = ops.linear(self.query[i], h, w.query, batch).reshape(tokens, -1, sum(self.query_parts.sizes))
        still, turned = ops.split(self.query_parts, q)
        still, turned = ops.head_linear(self.absorb[i], still, w.absorb), ops.rope(self.query_rope, turned, batch)
        mixed = ops.attention(self.latent_attention, ops.concat(self.joined, still, turned), state, batch)
        return ops.head_linear(self.open[i], mixed, w.open).reshape(tokens, -1)


def _stretch(config: Fields) -> float:
    """What YaRN multiplies attention's logits by, its root: `mscale_all_dim` of the scaling."""
    scaling = Fields(config.table("rope_scaling") or config.table("rope_parameters"), config.family)
    if "mscale_all_dim" not in scaling or scaling.values["mscale_all_dim"] == 0:
        return 1.0
    factor = scaling.real("factor")
    return 0.1 * scaling.real("mscale_all_dim") * log(factor) + 1.0 if factor > 1 else 1.0
