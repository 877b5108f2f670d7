"""The decoder most families are: grouped attention with rotary embeddings and a gated MLP, RMS norms before each."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..ops import (
    DTYPES,
    Activation,
    Add,
    AddRmsNorm,
    Attention,
    Dim,
    Embedding,
    GatedActivation,
    GatedLinear,
    Linear,
    QkvRopeWrite,
    RmsNorm,
    Rope,
    Scale,
    StateArray,
    StateGroup,
    TakeRows,
    Tensor,
    Weight,
    WeightTable,
    WriteKV,
)
from .base import UNQUANTIZED, Model, Precision
from .config import ACTIVATIONS, AGAIN, Fields, read
from .rotary import Rotary, rotary

FULL, SLIDING = "full_attention", "sliding_attention"
QKV, OUT = "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.o_proj"
GATE_UP, DOWN = "gate_proj up_proj", "down_proj"
"""The linears of a layer and of an MLP: the modules that are fused into each."""


@dataclass(frozen=True)
class Design:
    """What sets one decoder apart from another: sizes, biases, norms, and each layer's window (None: full attention).

    rope: where the rotary embeddings are described; `local_rope` those of layers with a window, where they differ.
    context_tokens: None means what the rotary scaling was made for.
    attention_scale: None means head_dim ** -0.5. sinks: of `Attention`.
    post_norms: attention and MLP are normed before they are added, too.
    softcap, logit_softcap: x becomes softcap * tanh(x / softcap), of scores and of logits.
    """

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
    rope: Fields
    local_rope: Fields | None = None
    context_tokens: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embed_scale: float | None = None
    attention_scale: float | None = None
    sinks: bool = False
    softcap: float | None = None
    logit_softcap: float | None = None


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: its two linears, and the module of the checkpoint that holds them."""

    module: str
    gate_up: GatedLinear
    down: Linear

    @classmethod
    def of(cls, module: str, d: Design, size: int, dtype: str, precision: Precision) -> Mlp:
        embed, mlp = Dim(d.embed, "embed"), Dim(size, "mlp")
        opening, closing = (precision.of(*_names(module, modules)) for modules in (GATE_UP, DOWN))
        gate_up = Linear(input=embed, outputs=(mlp, mlp), dtype=dtype, bias=d.mlp_bias, scheme=opening)
        down = Linear(input=mlp, outputs=(embed,), dtype=dtype, bias=d.mlp_bias, scheme=closing)
        return cls(module, GatedLinear(linear=gate_up, activation=GatedActivation(kind=d.activation, dtype=dtype)), down)

    def weights(self) -> dict[str, Weight]:
        return {"gate_up": _fused(self.gate_up.linear, self.module, GATE_UP), "down": _fused(self.down, self.module, DOWN)}


class Decoder(Model):
    """The graph and the weight table of a `Design`. A family says how its config.json reads."""

    computed: ClassVar[frozenset[str]] = frozenset()
    """Keys that `read` refuses to others."""

    @staticmethod
    @abstractmethod
    def design(config: Fields) -> Design:
        """Raises `CheckpointError` for a config that does not describe this family."""

    def __init__(
        self, config: Mapping[str, Any], *, dtype: str, block_tokens: int, max_model_len: int | None = None,
        precision: Precision = UNQUANTIZED,
    ) -> None:
        fields = read(config, self.model_type, self.computed)
        if precision is UNQUANTIZED:
            fields.refuse("quantization_config", (), "give the model the precision of its checkpoint, or use the unquantized one")
        d = self.design(fields)
        if d.heads % d.kv_heads:
            raise fields.error("num_key_value_heads", f"must divide {d.heads} heads", AGAIN)
        turn = _rotary(d, d.rope, max_model_len)
        local = turn if d.local_rope is None else _rotary(d, d.local_rope, max_model_len)
        self.vocab_size, self.num_layers, self.context_tokens = d.vocab, len(d.windows), d.context_tokens or turn.context_tokens
        self.dtype, self.head_dim, self.qk_norm, self.post_norms = dtype, d.head_dim, d.qk_norm, d.post_norms

        vocab, embed = Dim(d.vocab, "vocab"), Dim(d.embed, "embed")
        self.embedding = Embedding(vocab=vocab, size=d.embed, dtype=dtype)
        self.embed_scale = None if d.embed_scale is None else Scale(factor=float(DTYPES[dtype].type(d.embed_scale)), dtype=dtype)
        self.norm = RmsNorm(size=d.embed, epsilon=d.epsilon, dtype=dtype, offset=d.norm_offset)
        self.add_norm = AddRmsNorm(norm=self.norm)
        self.add = Add(dtype=dtype)
        cell = self._add_attention(fields, d, turn, local, precision)
        self.take, self.take_mixed = (TakeRows(size=size, dtype=dtype) for size in (embed, self.out[0].input))
        self.mlps = [Mlp.of(f"model.layers.{i}.mlp", d, d.mlp, dtype, precision) for i in range(self.num_layers)]
        self._add_experts(fields, d, precision)
        self.lm_head = Linear(input=embed, outputs=(vocab,), dtype=dtype, out_dtype="float32", scheme=precision.of("lm_head"))
        self.capping = None if d.logit_softcap is None else _capping(d.logit_softcap)

        self.weights = WeightTable(
            top={
                "embed": self.embedding.weight("model.embed_tokens"),
                "norm": self.norm.weight("model.norm"),
                "head": self.lm_head.weight("model.embed_tokens" if d.tied else "lm_head"),
            },
            layers=[self._layer_weights(i) for i in range(self.num_layers)],
            ignored=(".rotary_emb.inv_freq", *(("lm_head.weight",) if d.tied else ())),
            ignored_modules=self._ignored_modules(fields),
        )
        self.states = _groups(d, cell, block_tokens)

    def _add_attention(self, fields: Fields, d: Design, turn: Rotary, local: Rotary, precision: Precision) -> Mapping[str, StateArray]:
        """The specs of attention. turn, local: the rotary embeddings of full layers, and of those with a window. Gives a cell's arrays."""
        dtype, kv_dtype = self.dtype, precision.kv_dtype
        embed, heads, kv_heads = Dim(d.embed, "embed"), Dim(d.heads, "heads"), Dim(d.kv_heads, "kv_heads")
        q_size, kv_size = Dim(d.heads * d.head_dim, "heads"), Dim(d.kv_heads * d.head_dim, "kv_heads")
        self.head_norm = RmsNorm(size=d.head_dim, epsilon=d.epsilon, dtype=dtype, offset=d.norm_offset)
        write = WriteKV(kv_heads=kv_heads, key_dim=d.head_dim, value_dim=d.head_dim, dtype=dtype, kv_dtype=kv_dtype)

        def rope_write(turn: Rotary) -> QkvRopeWrite:
            query, key = (Rope(heads=of, head_dim=d.head_dim, frequencies=turn.frequencies, dtype=dtype, scale=turn.factor)
                          for of in (heads, kv_heads))
            return QkvRopeWrite(query=query, key=key, write=write)

        everywhere, sliding = rope_write(turn), rope_write(local)
        self.rope_write = tuple(everywhere if window is None else sliding for window in d.windows)
        by_window = {window: Attention(
            heads=heads, kv_heads=kv_heads, key_dim=d.head_dim, value_dim=d.head_dim, scale=d.attention_scale or d.head_dim**-0.5,
            dtype=dtype, window=window, softcap=d.softcap, sinks=d.sinks, kv_dtype=kv_dtype,
        ) for window in set(d.windows)}
        self.attention = tuple(by_window[window] for window in d.windows)
        self.qkv = self._linears(QKV, embed, (q_size, kv_size, kv_size), d.qkv_bias, precision)
        self.out = self._linears(OUT, q_size, (embed,), d.out_bias, precision)
        return write.arrays

    def _linears(self, modules: str, inputs: Dim, outputs: tuple[Dim, ...], bias: bool, precision: Precision) -> list[Linear]:
        """One for each layer: a checkpoint may quantize some of them."""
        schemes = [precision.of(*_names(f"model.layers.{i}", modules)) for i in range(self.num_layers)]
        return [Linear(input=inputs, outputs=outputs, dtype=self.dtype, bias=bias, scheme=scheme) for scheme in schemes]

    def _ignored_modules(self, fields: Fields) -> tuple[str, ...]:
        """What a checkpoint may hold beside the model."""
        return ()

    def _layer_weights(self, i: int) -> dict[str, Weight]:
        at = f"model.layers.{i}"
        return {
            "attn_norm": self.norm.weight(f"{at}.input_layernorm"),
            **self._attention_weights(i, at),
            **self._norms_between(at),
            **self._mlp_weights(i, at),
        }

    def _attention_weights(self, i: int, at: str) -> dict[str, Weight]:
        norms = {name: self.head_norm.weight(f"{at}.self_attn.{name}") for name in ("q_norm", "k_norm")}
        sinks = Tensor(f"{at}.self_attn.sinks", (self.attention[i].heads.size,), ("heads",))
        return {
            "qkv": _fused(self.qkv[i], at, QKV),
            **(norms if self.qk_norm else {}),
            **({"sinks": Weight((sinks,))} if self.attention[i].sinks else {}),
            "out": _fused(self.out[i], at, OUT),
        }

    def _norms_between(self, at: str) -> dict[str, Weight]:
        """The norms after attention; its checkpoint name means the one before the MLP where that is the only one."""
        after, before_mlp, after_mlp = (
            self.norm.weight(f"{at}.{name}_layernorm") for name in ("post_attention", "pre_feedforward", "post_feedforward")
        )
        return {"attn_post_norm": after, "mlp_norm": before_mlp, "mlp_post_norm": after_mlp} if self.post_norms else {"mlp_norm": after}

    def _add_experts(self, fields: Fields, d: Design, precision: Precision) -> None:
        """Where a family makes the specs of layers that have more than the plain MLP."""

    def _mlp_weights(self, i: int, at: str) -> dict[str, Weight]:
        return self.mlps[i].weights()

    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        x = ops.embedding(self.embedding, batch.tokens, w.embed)
        return x if self.embed_scale is None else ops.scale(self.embed_scale, x)

    def layer(self, i: int, ops: Any, x: Any, w: Any, batch: Any, state: Any, rows: Any) -> Any:
        h = self._attend(i, ops, ops.rms_norm(self.norm, x, w.attn_norm), w, batch, state)
        if rows is not None:
            h, x = ops.take_rows(self.take_mixed, h, rows), ops.take_rows(self.take, x, rows)
        h = ops.linear(self.out[i], h, w.out, batch)
        if self.post_norms:
            h = ops.rms_norm(self.norm, h, w.attn_post_norm)
        h, x = ops.add_rms_norm(self.add_norm, h, x, w.mlp_norm)
        h = self._mlp(i, ops, h, w, batch)
        if self.post_norms:
            h = ops.rms_norm(self.norm, h, w.mlp_post_norm)
        return ops.add(self.add, h, x)

    def _mlp(self, i: int, ops: Any, h: Any, w: Any, batch: Any) -> Any:
        """h [tokens, embed] -> [tokens, embed]."""
        mlp = self.mlps[i]
        return ops.linear(mlp.down, ops.gated_linear(mlp.gate_up, h, w.gate_up, batch), w.down, batch)

    def _attend(self, i: int, ops: Any, h: Any, w: Any, batch: Any, state: Any) -> Any:
        """h [tokens, embed] -> [tokens, heads * head_dim]: the heads' values, mixed."""
        tokens = h.shape[0]
        q, k, v = (part.reshape(tokens, -1, self.head_dim) for part in ops.linear(self.qkv[i], h, w.qkv, batch))
        if self.qk_norm:
            q, k = ops.rms_norm(self.head_norm, q, w.q_norm), ops.rms_norm(self.head_norm, k, w.k_norm)
        q = ops.qkv_rope_write(self.rope_write[i], q, k, v, state, batch)
        sinks = [w.sinks] if self.attention[i].sinks else []
        return ops.attention(self.attention[i], q, state, batch, *sinks).reshape(tokens, -1)

    def head(self, ops: Any, w: Any, rows: Any, batch: Any) -> Any:
        logits = ops.linear(self.lm_head, ops.rms_norm(self.norm, rows, w.norm), w.head, batch)
        if self.capping is None:
            return logits
        down, tanh, up = self.capping
        return ops.scale(up, ops.activation(tanh, ops.scale(down, logits)))


def _names(at: str, modules: str) -> list[str]:
    return [f"{at}.{module}" for module in modules.split()]


def _fused(spec: Linear, at: str, modules: str) -> Weight:
    return spec.weight(*_names(at, modules))


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
    activation = special.pop("activation", None) or config.choice("hidden_act", ACTIVATIONS, "silu")
    return Design(
        vocab=config.integer("vocab_size"), embed=embed, mlp=config.integer("intermediate_size"),
        heads=heads, kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", head_dim or embed // heads),
        epsilon=config.real("rms_norm_eps", 1e-6), activation=activation,
        tied=config.flag("tie_word_embeddings"), windows=windows, **{"rope": config, **special},
    )


def qwen_windows(config: Fields) -> tuple[int | None, ...]:
    """Each layer's window by `use_sliding_window`, `layer_types` and `max_window_layers`: the first so many layers see all."""
    layers = config.integer("num_hidden_layers")
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window") else None
    first = config.integer("max_window_layers", 28, least=0)
    kinds = layer_kinds(config, [SLIDING if window and i >= first else FULL for i in range(layers)])
    if SLIDING in kinds and window is None:
        raise config.error("layer_types", "names sliding layers while use_sliding_window is off", "make the two agree")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def layer_kinds(config: Fields, silent: Sequence[str]) -> Sequence[str]:
    """`FULL` or `SLIDING` for each layer, by `layer_types`; `silent` where the config has none."""
    kinds = config.names("layer_types") or silent
    if len(kinds) != len(silent) or set(kinds) - {FULL, SLIDING}:
        raise config.error("layer_types", f"must name {FULL} or {SLIDING} for each of {len(silent)} layers", AGAIN)
    return kinds


def _rotary(d: Design, rope: Fields, max_model_len: int | None) -> Rotary:
    return rotary(rope, d.head_dim, rope.integer("max_position_embeddings", 2048), max_model_len)


def _capping(softcap: float) -> tuple[Scale, Activation, Scale]:
    """softcap * tanh(logits / softcap), in float32 as logits are."""
    down, up = (Scale(factor=factor, dtype="float32") for factor in (1 / softcap, softcap))
    return down, Activation(kind="tanh", dtype="float32"), up


def _groups(d: Design, arrays: Mapping[str, StateArray], block_tokens: int) -> tuple[StateGroup, ...]:
    """Layers of full attention are one group, those with a window another."""
    groups = []
    for name, window in [("full", None), *(("sliding", w) for w in sorted({w for w in d.windows if w is not None}))]:
        if layers := tuple(i for i, own in enumerate(d.windows) if own == window):
            groups.append(StateGroup(name, layers, arrays, window=window, block_tokens=block_tokens))
    return tuple(groups)
