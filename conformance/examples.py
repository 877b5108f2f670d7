"""Specs of every op: a plain one for each dtype, and odd ones that a platform may refuse but never stumble over."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from ..ops import (
    DTYPES,
    Activation,
    Add,
    AddRmsNorm,
    Attention,
    Concat,
    Derive,
    Dim,
    Embedding,
    GatedActivation,
    GatedLinear,
    HeadLinear,
    LayerNorm,
    Linear,
    Moe,
    Multiply,
    QkvRopeWrite,
    RmsNorm,
    Rope,
    Router,
    Sample,
    Scale,
    Scheme,
    Spec,
    Split,
    TakeRows,
    WriteKV,
)
from ..ops.attention import KV_SCHEMES

HUGE = 2**31 + 1
ODD_SCHEME = Scheme("int4", group=7, rows=3, zeros=True)


def _rope(dtype: str, heads: int = 4) -> Rope:
    return Rope(heads=Dim(heads, "heads"), head_dim=16, frequencies=tuple(10000.0 ** (-j / 8) for j in range(8)), dtype=dtype)


def _write(dtype: str) -> WriteKV:
    return WriteKV(kv_heads=Dim(2, "kv_heads"), key_dim=16, value_dim=16, dtype=dtype)


def _gated(dtype: str) -> GatedLinear:
    linear = Linear(input=Dim(32, "embed"), outputs=(Dim(48, "mlp"), Dim(48, "mlp")), dtype=dtype)
    return GatedLinear(linear=linear, activation=GatedActivation(kind="silu", dtype=dtype))


PLAIN: dict[str, Callable[[str], Spec]] = {
    "embedding": lambda dtype: Embedding(vocab=Dim(97, "vocab"), size=32, dtype=dtype),
    "linear": lambda dtype: Linear(input=Dim(32, "embed"), outputs=(Dim(48, "mlp"),), dtype=dtype),
    "take_rows": lambda dtype: TakeRows(size=Dim(32), dtype=dtype),
    "add": lambda dtype: Add(dtype=dtype),
    "multiply": lambda dtype: Multiply(dtype=dtype),
    "scale": lambda dtype: Scale(factor=0.5, dtype=dtype),
    "rms_norm": lambda dtype: RmsNorm(size=32, epsilon=1e-5, dtype=dtype),
    "layer_norm": lambda dtype: LayerNorm(size=32, epsilon=1e-5, dtype=dtype),
    "add_rms_norm": lambda dtype: AddRmsNorm(norm=RmsNorm(size=32, epsilon=1e-5, dtype=dtype)),
    "rope": _rope,
    "activation": lambda dtype: Activation(kind="silu", dtype=dtype),
    "gated_activation": lambda dtype: GatedActivation(kind="silu", dtype=dtype),
    "gated_linear": _gated,
    "write_kv": _write,
    "attention": lambda dtype: Attention(
        heads=Dim(4, "heads"), kv_heads=Dim(2, "kv_heads"), key_dim=16, value_dim=16, scale=0.25, dtype=dtype),
    "qkv_rope_write": lambda dtype: QkvRopeWrite(query=_rope(dtype), key=_rope(dtype, 2), write=_write(dtype)),
    "head_linear": lambda dtype: HeadLinear(heads=Dim(4, "heads"), input=16, output=32, dtype=dtype),
    "split": lambda dtype: Split(sizes=(32, 16), dtype=dtype),
    "concat": lambda dtype: Concat(sizes=(32, 16), dtype=dtype),
    "router": lambda dtype: Router(experts=Dim(8, "experts"), top_k=2),
    "moe": lambda dtype: Moe(experts=Dim(8, "experts"), embed=32, mlp=Dim(16, "mlp"), top_k=2, activation="silu", dtype=dtype),
    "sample": lambda dtype: Sample(vocab=Dim(97, "vocab")),
    "derive": lambda dtype: Derive(),
}
"""op -> dtype -> its plain spec. `router`, `sample` and `derive` have no dtype."""

ODD: dict[str, tuple[dict[str, Any], ...]] = {
    "embedding": ({"vocab": Dim(1)}, {"vocab": Dim(HUGE)}, {"size": 1}),
    "linear": (
        {"bias": True}, {"outputs": (Dim(1), Dim(HUGE), Dim(3))}, {"input": Dim(1)}, {"scheme": ODD_SCHEME},
        *({"out_dtype": dtype} for dtype in DTYPES),
    ),
    "take_rows": ({"size": 1}, {"size": HUGE}),
    "scale": ({"factor": 0.0}, {"factor": float("inf")}, {"factor": float("nan")}),
    "rms_norm": ({"size": 1}, {"size": HUGE}, {"epsilon": 0.0}, {"offset": 1.0}),
    "layer_norm": ({"size": 1}, {"size": HUGE}, {"bias": False}),
    "rope": ({"interleaved": True}, {"scale": 3.5}, {"frequencies": (1.0,)}, {"head_dim": 17}, {"heads": Dim(HUGE)}),
    "activation": ({"kind": "relu"}, {"kind": "gelu"}),
    "gated_activation": ({"kind": "gelu_tanh"}, {"kind": "relu"}),
    "write_kv": ({"key_dim": 1}, {"value_dim": 576}, {"kv_heads": Dim(HUGE)}, {"latent": True},
                 *({"kv_dtype": dtype} for dtype in KV_SCHEMES)),
    "attention": (
        {"window": 1}, {"window": HUGE}, {"softcap": 30.0}, {"sinks": True}, {"value_dim": 1}, {"key_dim": 576}, {"key_dim": 33},
        {"heads": Dim(7), "kv_heads": Dim(1)}, {"heads": Dim(HUGE), "kv_heads": Dim(1)}, {"scale": 0.0},
        {"alibi": (0.5, 0.25, 0.0, -1.0)}, {"latent": True}, {"latent": True, "key_dim": 576, "value_dim": 512},
        *({"kv_dtype": dtype} for dtype in KV_SCHEMES),
    ),
    "head_linear": ({"heads": Dim(HUGE)}, {"input": 1}, {"output": 1}, {"stored": "float8_e4m3fn:g128:r128"}),
    "split": ({"sizes": (1, HUGE)}, {"sizes": (1,) * 5}),
    "concat": ({"sizes": (1, HUGE)}, {"sizes": (1,) * 5}),
    "router": ({"top_k": 8}, {"sigmoid": True}, {"renormalize": False}, {"experts": Dim(HUGE)}, {"bias": True}, {"scale": 2.5},
               {"bias": True, "groups": 4, "top_groups": 1}),
    "moe": ({"top_k": 8}, {"experts": Dim(2), "top_k": 1}, {"mlp": Dim(1)}, {"embed": HUGE}, {"activation": "relu"}, {"bias": True},
            {"limit": 7.0, "alpha": 1.702}, {"stored": "mxfp4"}),
    "sample": ({"vocab": Dim(1)}, {"vocab": Dim(HUGE)}),
}
"""Changes to the plain spec, one after the other."""


def specs(op: str, dtype: str) -> Iterator[Spec]:
    """The plain spec in `dtype`, its odd variants, and the plain one in every other dtype."""
    plain = PLAIN[op](dtype)
    yield plain
    for change in ODD.get(op, ()):
        yield replace(plain, **change)  # type: ignore[type-var]
    for other in DTYPES:
        if other != dtype and PLAIN[op](other) != plain:
            yield PLAIN[op](other)


FORMS = ("", ":g32", ":g64", ":g128", ":g128:r128", ":rall", ":g32:float16", ":g128:bfloat16")
ACTIVATED = ("", ":a8", ":a8g32", ":a8g128", ":af8", ":af8g128")
"""What usual schemes say behind the dtype of their codes: of the weight, then of activations."""


def quantized(dtype: str, scheme: str) -> Linear:
    """A plain linear under a scheme, which groups of the usual sizes divide."""
    return Linear(input=Dim(256, "embed"), outputs=(Dim(128, "mlp"),), dtype=dtype, scheme=Scheme.parse(scheme))


def dtype_of(spec: Any) -> str | None:
    """What it computes in; of a composed spec, what its first part does."""
    if hasattr(spec, "dtype"):
        return str(spec.dtype)
    parts = (getattr(spec, field.name) for field in fields(spec))
    return next((found for part in parts if isinstance(part, Spec) and (found := dtype_of(part))), None)
