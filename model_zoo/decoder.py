"""The decoder most families are: grouped attention with rotary embeddings and a gated MLP, RMS norms before each."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ops import (
    Add,
    AddRmsNorm,
    Attention,
    Dim,
    Embedding,
    GatedActivation,
    Linear,
    QkvRopeWrite,
    RmsNorm,
    Rope,
    StateArray,
    StateGroup,
    Weight,
    WeightTable,
    WriteKV,
)
from .base import UNQUANTIZED, Model, Precision
from .config import ACTIVATIONS, AGAIN, Fields, read
from .rotary import rotary

FULL, SLIDING = "full_attention", "sliding_attention"
QKV, OUT = "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.o_proj"
GATE_UP, DOWN = "mlp.gate_proj mlp.up_proj", "mlp.down_proj"
"""The linears of a layer: the modules that are fused into each."""


@dataclass(frozen=True)
class Design:
    """What sets one decoder apart from another: sizes, biases, norms, and each layer's window (None: full attention)."""

    vocab: int
    embed: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    tied: bool
    windows: Sequence[int | None]
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class Decoder(Model):
    """The graph and the weight table of a `Design`. A family says how its config.json reads."""

    @staticmethod
    @abstractmethod
    def design(config: Fields) -> Design:
        """Raises `CheckpointError` for a config that does not describe this family."""

    def __init__(
        self, config: Mapping[str, Any], *, dtype: str, block_tokens: int, max_model_len: int | None = None,
        precision: Precision = UNQUANTIZED,
    ) -> None:
        fields = read(config, self.model_type)
        if precision is UNQUANTIZED:
            fields.refuse("quantization_config", (), "give the model the precision of its checkpoint, or use the unquantized one")
        d = self.design(fields)
        if d.heads % d.kv_heads:
            raise fields.error("num_key_value_heads", f"must divide {d.heads} heads", AGAIN)
        turn = rotary(fields, d.head_dim, fields.integer("max_position_embeddings", 2048), max_model_len)
        self.vocab_size, self.num_layers, self.context_tokens = d.vocab, len(d.windows), turn.context_tokens
        self.dtype, self.head_dim, self.qk_norm = dtype, d.head_dim, d.qk_norm

        vocab, embed, mlp = Dim(d.vocab, "vocab"), Dim(d.embed, "embed"), Dim(d.mlp, "mlp")
        heads, kv_heads = Dim(d.heads, "heads"), Dim(d.kv_heads, "kv_heads")
        q_size, kv_size = Dim(d.heads * d.head_dim, "heads"), Dim(d.kv_heads * d.head_dim, "kv_heads")

        self.embedding = Embedding(vocab=vocab, size=d.embed, dtype=dtype)
        self.norm = RmsNorm(size=d.embed, epsilon=d.epsilon, dtype=dtype)
        self.add_norm = AddRmsNorm(norm=self.norm)
        self.add = Add(dtype=dtype)
        self.head_norm = RmsNorm(size=d.head_dim, epsilon=d.epsilon, dtype=dtype)
        self.rope_write = QkvRopeWrite(
            query=Rope(heads=heads, head_dim=d.head_dim, frequencies=turn.frequencies, dtype=dtype, scale=turn.factor),
            key=Rope(heads=kv_heads, head_dim=d.head_dim, frequencies=turn.frequencies, dtype=dtype, scale=turn.factor),
            write=WriteKV(kv_heads=kv_heads, key_dim=d.head_dim, value_dim=d.head_dim, dtype=dtype, kv_dtype=precision.kv_dtype),
        )
        by_window = {window: Attention(
            heads=heads, kv_heads=kv_heads, key_dim=d.head_dim, value_dim=d.head_dim,
            scale=d.head_dim**-0.5, dtype=dtype, window=window, kv_dtype=precision.kv_dtype,
        ) for window in set(d.windows)}
        self.attention = tuple(by_window[window] for window in d.windows)
        self.activation = GatedActivation(kind=d.activation, dtype=dtype)

        def linear(modules: str, inputs: Dim, outputs: tuple[Dim, ...], bias: bool) -> list[Linear]:
            """One for each layer: a checkpoint may quantize some of them."""
            names = [[f"model.layers.{i}.{module}" for module in modules.split()] for i in range(self.num_layers)]
            return [Linear(input=inputs, outputs=outputs, dtype=dtype, bias=bias, scheme=precision.of(*fused)) for fused in names]

        self.qkv = linear(QKV, embed, (q_size, kv_size, kv_size), d.qkv_bias)
        self.out = linear(OUT, q_size, (embed,), d.out_bias)
        self.gate_up = linear(GATE_UP, embed, (mlp, mlp), d.mlp_bias)
        self.down = linear(DOWN, mlp, (embed,), d.mlp_bias)
        self._add_experts(fields, d, precision)
        self.lm_head = Linear(input=embed, outputs=(vocab,), dtype=dtype, out_dtype="float32", scheme=precision.of("lm_head"))

        self.weights = WeightTable(
            top={
                "embed": self.embedding.weight("model.embed_tokens"),
                "norm": self.norm.weight("model.norm"),
                "head": self.lm_head.weight("model.embed_tokens" if d.tied else "lm_head"),
            },
            layers=[self._layer_weights(i) for i in range(self.num_layers)],
            ignored=(".rotary_emb.inv_freq", *(("lm_head.weight",) if d.tied else ())),
        )
        self.states = _groups(d, self.rope_write.write.arrays, block_tokens)

    def _layer_weights(self, i: int) -> dict[str, Weight]:
        at = f"model.layers.{i}"
        norms = {name: self.head_norm.weight(f"{at}.self_attn.{name}") for name in ("q_norm", "k_norm")}
        return {
            "attn_norm": self.norm.weight(f"{at}.input_layernorm"),
            "qkv": _fused(self.qkv[i], at, QKV),
            **(norms if self.qk_norm else {}),
            "out": _fused(self.out[i], at, OUT),
            "mlp_norm": self.norm.weight(f"{at}.post_attention_layernorm"),
            **self._mlp_weights(i, at),
        }

    def _add_experts(self, fields: Fields, d: Design, precision: Precision) -> None:
        """Where a family makes the specs of layers that have more than the plain MLP."""

    def _mlp_weights(self, i: int, at: str) -> dict[str, Weight]:
        return {"gate_up": _fused(self.gate_up[i], at, GATE_UP), "down": _fused(self.down[i], at, DOWN)}

    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        return ops.embedding(self.embedding, batch.tokens, w.embed)

    def layer(self, i: int, ops: Any, x: Any, w: Any, batch: Any, state: Any) -> Any:
        h = self._attend(i, ops, ops.rms_norm(self.norm, x, w.attn_norm), w, batch, state)
        h, x = ops.add_rms_norm(self.add_norm, h, x, w.mlp_norm)
        return ops.add(self.add, self._mlp(i, ops, h, w, batch), x)

    def _mlp(self, i: int, ops: Any, h: Any, w: Any, batch: Any) -> Any:
        """h [tokens, embed] -> [tokens, embed]."""
        gate, up = ops.linear(self.gate_up[i], h, w.gate_up, batch)
        return ops.linear(self.down[i], ops.gated_activation(self.activation, gate, up), w.down, batch)

    def _attend(self, i: int, ops: Any, h: Any, w: Any, batch: Any, state: Any) -> Any:
        """h [tokens, embed] -> [tokens, embed]."""
        tokens = h.shape[0]
        q, k, v = (part.reshape(tokens, -1, self.head_dim) for part in ops.linear(self.qkv[i], h, w.qkv, batch))
        if self.qk_norm:
            q, k = ops.rms_norm(self.head_norm, q, w.q_norm), ops.rms_norm(self.head_norm, k, w.k_norm)
        q = ops.qkv_rope_write(self.rope_write, q, k, v, state, batch)
        mixed = ops.attention(self.attention[i], q, state, batch)
        return ops.linear(self.out[i], mixed.reshape(tokens, -1), w.out, batch)

    def head(self, ops: Any, w: Any, rows: Any, batch: Any) -> Any:
        return ops.linear(self.lm_head, ops.rms_norm(self.norm, rows, w.norm), w.head, batch)


def _fused(spec: Linear, at: str, modules: str) -> Weight:
    return spec.weight(*(f"{at}.{module}" for module in modules.split()))


def one_window(config: Fields, window: int | None) -> tuple[int | None, ...]:
    """The same window in every layer, or none."""
    layers = config.integer("num_hidden_layers")
    kind = FULL if window is None else SLIDING
    config.refuse("layer_types", ([kind] * layers,), f"remove it; all layers of a {config.family} model have the same window")
    return (window,) * layers


def standard(config: Fields, *, head_dim: int | None = None, **special: Any) -> Design:
    """The fields that every family spells alike; `head_dim` is the family's default, otherwise embed / heads."""
    embed, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if head_dim is None and "head_dim" not in config and embed % heads:
        raise config.error("num_attention_heads", f"must divide a hidden_size of {embed} without head_dim", "add head_dim")
    windows = special.pop("windows", (None,) * config.integer("num_hidden_layers"))
    return Design(
        vocab=config.integer("vocab_size"), embed=embed, mlp=config.integer("intermediate_size"),
        heads=heads, kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", head_dim or embed // heads),
        epsilon=config.real("rms_norm_eps", 1e-6), activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        tied=config.flag("tie_word_embeddings"), windows=windows, **special,
    )


def qwen_windows(config: Fields) -> tuple[int | None, ...]:
    """Each layer's window by `use_sliding_window`, `layer_types` and `max_window_layers`: the first so many layers see all."""
    layers = config.integer("num_hidden_layers")
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window") else None
    first = config.integer("max_window_layers", 28, least=0)
    kinds = config.names("layer_types") or [SLIDING if window and i >= first else FULL for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {FULL, SLIDING}:
        raise config.error("layer_types", f"must name {FULL} or {SLIDING} for each of {layers} layers", AGAIN)
    if SLIDING in kinds and window is None:
        raise config.error("layer_types", "names sliding layers while use_sliding_window is off", "make the two agree")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _groups(d: Design, arrays: Mapping[str, StateArray], block_tokens: int) -> tuple[StateGroup, ...]:
    """Layers of full attention are one group, those with a window another."""
    groups = []
    for name, window in [("full", None), *(("sliding", w) for w in sorted({w for w in d.windows if w is not None}))]:
        if layers := tuple(i for i, own in enumerate(d.windows) if own == window):
            groups.append(StateGroup(name, layers, arrays, window=window, block_tokens=block_tokens))
    return tuple(groups)
