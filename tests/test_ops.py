"""The op contract: what specs refuse, what references mean, how tolerances judge, and batches in one buffer."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import erf, exp, log, sqrt, tanh
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferplane.errors import SpecError
from inferplane.ops import (
    ADD_RMS_NORM,
    DEFAULTS,
    GATED_ACTIVATION,
    QKV_ROPE_WRITE,
    Abstract,
    Activation,
    Add,
    AddRmsNorm,
    Attention,
    BatchShape,
    Concat,
    Derive,
    Dim,
    Embedding,
    GatedActivation,
    GroupRows,
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
    Scope,
    Spec,
    Split,
    StateArray,
    StateGroup,
    TakeRows,
    Tensor,
    View,
    Weight,
    WeightTable,
    WriteKV,
    empty,
    unpack,
)
from inferplane.ops.attention import gather
from inferplane.ops.elementwise import FORMULAS
from inferplane.ops.sample import draw, edited, kept, logprobs
from inferplane.ops.threefry import threefry, uniforms
from inferplane.ops.tolerance import exact, half_ulp, naive_relative, within

Array = np.ndarray[Any, Any]
BLOCK_TOKENS = 4


def floats(*shape: int, dtype: str = "float32") -> Abstract:
    return Abstract(shape, dtype)


def ints(*shape: int) -> Abstract:
    return Abstract(shape, "int32")


ROPE = Rope(heads=Dim(3), head_dim=8, frequencies=(1.0, 0.1), dtype="float32")
WRITE = WriteKV(kv_heads=Dim(3), key_dim=8, value_dim=5, dtype="float32")
ATTENTION = Attention(heads=Dim(6), kv_heads=Dim(3), key_dim=8, value_dim=5, scale=0.5, dtype="float32")
LINEAR = Linear(input=Dim(8), outputs=(Dim(4), Dim(2)), dtype="float32")
NORM = RmsNorm(size=8, epsilon=1e-5, dtype="float32")
LAYER_NORM = LayerNorm(size=8, epsilon=1e-5, dtype="float32")
ROUTER = Router(experts=Dim(6), top_k=2)
MOE = Moe(experts=Dim(6), embed=8, mlp=Dim(4), top_k=2, activation="silu", dtype="float32")
HEAD_LINEAR = HeadLinear(heads=Dim(3), input=8, output=5, dtype="float32")
SPLIT, CONCAT = Split(sizes=(5, 3), dtype="float32"), Concat(sizes=(5, 3), dtype="float32")

# What a spec refuses

INPUT, OUTPUT = Dim(4), (Dim(4),)
HEADS: dict[str, Any] = {"heads": Dim(6), "key_dim": 8, "value_dim": 8, "scale": 1.0, "dtype": "float32"}

BAD_SPECS: dict[str, tuple[Callable[[], Spec], str]] = {
    "linear-without-outputs": (lambda: Linear(input=INPUT, outputs=(), dtype="float32"), "at least one output"),
    "linear-of-size-zero": (lambda: Linear(input=Dim(0), outputs=OUTPUT, dtype="float32"), "input has size 0"),
    "linear-with-an-empty-output": (lambda: Linear(input=INPUT, outputs=(Dim(4), Dim(0)), dtype="float32"), "outputs has size 0"),
    "linear-of-unknown-dtype": (lambda: Linear(input=INPUT, outputs=OUTPUT, dtype="float31"), "unknown dtype 'float31'; known"),
    "linear-of-unknown-out": (lambda: Linear(input=INPUT, outputs=OUTPUT, dtype="int8", out_dtype="f"), "unknown dtype 'f'"),
    "activation-of-unknown-kind": (lambda: Activation(kind="swish", dtype="float32"), "unknown kind 'swish'; known: silu"),  # type: ignore[arg-type]
    "gate-of-unknown-kind": (lambda: GatedActivation(kind="glu", dtype="float32"), "unknown kind 'glu'"),  # type: ignore[arg-type]
    "rope-without-frequencies": (lambda: Rope(heads=Dim(1), head_dim=8, frequencies=(), dtype="float32"), "0 frequencies"),
    "rope-beyond-the-head": (lambda: Rope(heads=Dim(1), head_dim=4, frequencies=(1.0,) * 3, dtype="float32"), "turn 6 of 4 dims"),
    "attention-with-odd-groups": (lambda: Attention(kv_heads=Dim(4), **HEADS), "6 heads do not divide into 4"),
    "attention-without-a-window": (lambda: Attention(kv_heads=Dim(2), window=0, **HEADS), "window 0"),
    "attention-with-two-slopes": (lambda: Attention(kv_heads=Dim(2), alibi=(0.5, 0.25), **HEADS), "2 alibi slopes for 6 heads"),
    "attention-with-a-slope-of-nan": (lambda: Attention(kv_heads=Dim(2), alibi=(float("nan"),) * 6, **HEADS), "finite"),
    "attention-over-float16-codes": (lambda: Attention(kv_heads=Dim(2), kv_dtype="float16", **HEADS), "kv_dtype float16.*Known: float8"),
    "attention-over-codes-of-nothing": (lambda: Attention(kv_heads=Dim(2), kv_dtype="int9", **HEADS), "unknown dtype 'int9'"),
    "latent-values-beyond-the-keys": (
        lambda: WriteKV(kv_heads=Dim(1), key_dim=8, value_dim=9, dtype="float32", latent=True), "value_dim 9 exceeds key_dim 8"),
    "latent-keys-rotated-whole": (lambda: QkvRopeWrite(query=ROPE, key=ROPE, write=replace(WRITE, latent=True)), "only in part"),
    "router-of-no-expert": (lambda: Router(experts=Dim(4), top_k=0), "top_k 0 of 4"),
    "router-of-too-many": (lambda: Router(experts=Dim(4), top_k=5), "top_k 5 of 4"),
    "router-groups-without-a-bias": (lambda: Router(experts=Dim(4), top_k=1, groups=2, top_groups=1), "groups, top_groups and bias"),
    "router-groups-all-kept-or-none": (lambda: Router(experts=Dim(4), top_k=1, groups=2, bias=True), "groups, top_groups and bias"),
    "router-groups-of-two-sizes": (lambda: Router(experts=Dim(4), top_k=1, groups=3, top_groups=1, bias=True), "1 of 3 groups of 4"),
    "router-more-groups-than-there-are": (lambda: Router(experts=Dim(4), top_k=1, groups=2, top_groups=3, bias=True), "3 of 2 groups"),
    "router-of-more-than-its-groups-have": (
        lambda: Router(experts=Dim(8), top_k=5, groups=4, top_groups=2, bias=True), "top_k 5 of the 4 experts that 2 groups have"),
    "moe-limit-without-alpha": (lambda: replace(MOE, limit=7.0), "limit and alpha belong together"),
    "moe-limit-of-relu": (lambda: replace(MOE, activation="relu", limit=7.0, alpha=1.0), "a limit of 7.0 on relu"),
    "moe-limit-of-0": (lambda: replace(MOE, limit=0.0, alpha=1.0), "a limit of 0.0"),
    "split-in-one": (lambda: Split(sizes=(4,), dtype="float32"), r"split: sizes \(4,\); two at least"),
    "concat-of-nothing": (lambda: Concat(sizes=(4, 0), dtype="float32"), "concat: sizes"),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_spec_that_means_nothing_is_refused(name: str) -> None:
    make, message = BAD_SPECS[name]
    with pytest.raises(SpecError, match=message):
        make()


BAD_CALLS: dict[str, tuple[Spec, Sequence[Any], str]] = {
    "linear-input-size": (LINEAR, (floats(3, 7), None, None), r"x has shape \[3, 7\], and must end in \[8\]"),
    "linear-input-dtype": (LINEAR, (floats(3, 8, dtype="bfloat16"), None, None), "x is bfloat16, and the spec says float32"),
    "embedding-of-floats": (Embedding(vocab=Dim(5), size=8, dtype="float32"), (floats(3), None), "tokens is float32"),
    "take-rows-size": (TakeRows(size=Dim(8), dtype="float32"), (floats(3, 7), ints(2)), r"must end in \[8\]"),
    "take-rows-by-floats": (TakeRows(size=Dim(8), dtype="float32"), (floats(3, 8), floats(2)), "rows is float32"),
    "add-shapes": (Add(dtype="float32"), (floats(3, 8), floats(3, 7)), "b has shape"),
    "add-dtypes": (Add(dtype="float32"), (floats(3, 8), floats(3, 8, dtype="bfloat16")), "b is bfloat16"),
    "multiply-dtypes": (Multiply(dtype="float32"), (floats(3, 8, dtype="float16"), floats(3, 8)), "a is float16"),
    "scale-dtype": (Scale(factor=2.0, dtype="bfloat16"), (floats(3),), "x is float32"),
    "activation-dtype": (Activation(kind="relu", dtype="bfloat16"), (floats(3),), "x is float32"),
    "gate-shapes": (GatedActivation(kind="relu", dtype="float32"), (floats(3, 4), floats(3, 5)), "b has shape"),
    "rms-norm-size": (NORM, (floats(3, 7), None), r"must end in \[8\]"),
    "layer-norm-dtype": (LAYER_NORM, (floats(3, 8, dtype="float16"), None), "x is float16"),
    "add-rms-norm-shapes": (AddRmsNorm(norm=NORM), (floats(3, 8), floats(2, 8), None), "residual has shape"),
    "rope-heads": (ROPE, (floats(5, 2, 8), None), r"must end in \[3, 8\]"),
    "write-kv-value-dim": (WRITE, (floats(5, 3, 8), floats(5, 3, 8), None, None), "v has shape"),
    "write-kv-key-dtype": (WRITE, (floats(5, 3, 8, dtype="bfloat16"), floats(5, 3, 5), None, None), "k is bfloat16"),
    "write-kv-latent-with-values": (replace(WRITE, latent=True), (floats(5, 3, 8), floats(5, 3, 5), None, None), "come with v None"),
    "write-kv-without-values": (WRITE, (floats(5, 3, 8), None, None, None), "come with v None"),
    "attention-key-dim": (ATTENTION, (floats(5, 6, 7), None, None), "q has shape"),
    "qkv-rope-write-value": (
        QkvRopeWrite(query=ROPE, key=ROPE, write=WRITE),
        (floats(5, 3, 8), floats(5, 3, 8), floats(5, 3, 4), None, None),
        "v has shape",
    ),
    "router-experts": (ROUTER, (floats(4, 5),), r"must end in \[6\]"),
    "router-dtype": (ROUTER, (floats(4, 6, dtype="bfloat16"),), "logits is bfloat16"),
    "head-linear-heads": (HEAD_LINEAR, (floats(4, 2, 8), None), r"must end in \[3, 8\]"),
    "split-size": (SPLIT, (floats(4, 7),), r"must end in \[8\]"),
    "concat-size": (CONCAT, (floats(4, 5), floats(4, 4)), r"must end in \[4, 3\]"),
    "concat-rows": (CONCAT, (floats(4, 5), floats(5, 3)), r"must end in \[4, 3\]"),
    "concat-of-too-few": (CONCAT, (floats(4, 5),), "1 parts for the sizes"),
    "concat-dtypes": (CONCAT, (floats(4, 5), floats(4, 3, dtype="float16")), "a part is float16"),
    "moe-embed": (MOE, (floats(4, 7), ints(4, 2), floats(4, 2), None, None), "x has shape"),
    "moe-top-k": (MOE, (floats(4, 8), ints(4, 3), floats(4, 2), None, None), "experts has shape"),
    "moe-weights": (MOE, (floats(4, 8), ints(4, 2), ints(4, 2), None, None), "weights is int32"),
    "sample-vocab": (Sample(vocab=Dim(9)), (floats(2, 8), None, None, None), "logits has shape"),
    "sample-dtype": (Sample(vocab=Dim(9)), (floats(2, 9, dtype="bfloat16"), None, None, None), "logits is bfloat16"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_call_that_does_not_fit_its_spec_is_refused(name: str) -> None:
    spec, arrays, message = BAD_CALLS[name]
    with pytest.raises(SpecError, match=f"{spec.op}: |rms_norm: |add: |rope: |write_kv: ") as caught:
        spec.infer(*arrays)
    assert caught.match(message)


def test_inference_tells_shapes_and_dtypes() -> None:
    assert LINEAR.infer(floats(3, 8), None, None) == (floats(3, 4), floats(3, 2))
    widening = Linear(input=Dim(8), outputs=(Dim(9),), dtype="bfloat16", out_dtype="float32")
    assert widening.infer(floats(3, 8, dtype="bfloat16"), None, None) == floats(3, 9)
    assert Embedding(vocab=Dim(5), size=8, dtype="bfloat16").infer(ints(3), None) == floats(3, 8, dtype="bfloat16")
    assert TakeRows(size=Dim(8), dtype="float32").infer(floats(5, 8), ints(2)) == floats(2, 8)
    assert AddRmsNorm(norm=NORM).infer(floats(3, 8), floats(3, 8), None) == (floats(3, 8), floats(3, 8))
    assert ATTENTION.infer(floats(5, 6, 8), None, None) == floats(5, 6, 5)
    assert ROUTER.infer(floats(4, 6)) == (ints(4, 2), floats(4, 2))
    assert MOE.infer(floats(4, 8), ints(4, 2), floats(4, 2), None, None) == floats(4, 8)
    assert Sample(vocab=Dim(9)).infer(floats(2, 9), None, None, None).tokens == ints(2)  # type: ignore[arg-type]
    assert Derive().infer("batch", None) == "batch"


@pytest.mark.parametrize(
    ("shape", "asked", "made"),
    [((4, 6), (4, 2, 3), (4, 2, 3)), ((4, 6), (4, -1, 3), (4, 2, 3)), ((0, 6), (-1, 3), (0, 3)), ((4, 6), (-1,), (24,))],
    ids=["known", "one-unknown", "empty", "flat"],
)
def test_an_abstract_array_reshapes(shape: tuple[int, ...], asked: tuple[int, ...], made: tuple[int, ...]) -> None:
    assert Abstract(shape, "float32").reshape(*asked).shape == made


@pytest.mark.parametrize("asked", [(5, 5), (-1, -1), (7, -1)], ids=["sizes", "two-unknown", "indivisible"])
def test_an_abstract_array_refuses_a_reshape_that_cannot_be(asked: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="cannot reshape"):
        floats(4, 6).reshape(*asked)


def test_equal_specs_are_one_key_and_say_what_they_are() -> None:
    same = Linear(input=Dim(8), outputs=(Dim(4), Dim(2)), dtype="float32")
    assert same == LINEAR
    assert hash(same) == hash(LINEAR)
    assert Linear(input=Dim(8, "embed"), outputs=(Dim(4), Dim(2)), dtype="float32") != LINEAR
    assert str(LINEAR) == "input=8 outputs=4+2 dtype=float32"


def test_every_optional_op_has_a_default_and_every_op_a_tolerance() -> None:
    assert set(DEFAULTS) == {"add_rms_norm", "gated_activation", "gated_linear", "qkv_rope_write"}
    assert set(Spec.families) > set(DEFAULTS)
    assert all(hasattr(family, "tolerance") for family in Spec.families.values())


# References


def test_linear_multiplies_by_each_weight_and_adds_its_bias() -> None:
    rng = np.random.default_rng(0)
    spec = Linear(input=Dim(3), outputs=(Dim(2), Dim(4)), dtype="float32", bias=True)
    x, first, second, bias, other = (rng.normal(size=shape) for shape in ((5, 3), (2, 3), (4, 3), (2,), (4,)))
    made = spec.reference(x, [first, second, bias, other], None)
    for found, weight, added in zip(made, (first, second), (bias, other), strict=True):
        np.testing.assert_allclose(found, [[sum(a * b for a, b in zip(row, out, strict=True)) + c
                                            for out, c in zip(weight, added, strict=True)] for row in x])
    sizes = spec.magnitude(x, [first, second, bias, other], None)
    assert all((size >= np.abs(found)).all() for size, found in zip(sizes, made, strict=True))


def test_a_linears_weight_names_its_tensors_then_its_biases() -> None:
    spec = Linear(input=Dim(3, "embed"), outputs=(Dim(2, "heads"), Dim(4, "kv_heads")), dtype="float32", bias=True)
    weight = spec.weight("q", "k")
    assert [part.name for part in weight.parts] == ["q.weight", "k.weight", "q.bias", "k.bias"]
    assert weight.tensors[1] == Tensor("k.weight", (4, 3), ("kv_heads", "embed"))
    with pytest.raises(SpecError, match="1 names for 2 outputs"):
        spec.weight("q")


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("silu", lambda x: x / (1 + exp(-x))), ("gelu", lambda x: x / 2 * (1 + erf(x / sqrt(2)))),
        ("gelu_tanh", lambda x: x / 2 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x**3)))), ("relu", lambda x: max(x, 0.0)),
        ("tanh", tanh),
    ],
)
def test_an_activation_is_its_formula(kind: Any, formula: Callable[[float], float]) -> None:
    x = np.array([-30.0, -3.0, -0.1, 0.0, 0.5, 4.0, 30.0])
    found = Activation(kind=kind, dtype="float32").reference(x)
    np.testing.assert_allclose(found, [formula(value) for value in x], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(GatedActivation(kind=kind, dtype="float32").reference(x, x + 1), found * (x + 1))
    assert FORMULAS[kind](np.zeros((0, 3))).shape == (0, 3)


def test_norms_have_unit_rms_or_variance_before_their_weights() -> None:
    x = np.random.default_rng(1).normal(size=(4, 8)) * 3 + 1
    ones = np.ones(8)
    np.testing.assert_allclose(np.sqrt(np.mean(NORM.reference(x, [ones]) ** 2, -1)), 1, rtol=1e-5)
    plain = LAYER_NORM.reference(x, [ones, 0 * ones])
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(plain.std(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(LAYER_NORM.reference(x, [ones, 2 * ones]), plain + 2)
    offset = RmsNorm(size=8, epsilon=1e-5, dtype="float32", offset=1.0)
    np.testing.assert_allclose(offset.reference(x, [0 * ones]), NORM.reference(x, [ones]))


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        (Add(dtype="float32"), [(4, 8), (4, 8)]),
        (Activation(kind="gelu", dtype="float32"), [(4, 8)]),
        (GatedActivation(kind="silu", dtype="float32"), [(4, 8), (4, 8)]),
        (LAYER_NORM, [(4, 8)]),
        (ROPE, [(4, 3, 8)]),
        (Rope(heads=Dim(3), head_dim=8, frequencies=(1.0, 0.1), dtype="float32", interleaved=True), [(4, 3, 8)]),
    ],
    ids=["add", "activation", "gate", "layer-norm", "rope", "rope-interleaved"],
)
def test_a_magnitude_is_no_less_than_the_result(spec: Spec, shapes: Sequence[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(18)
    rest = {"layer_norm": [rng.normal(size=(2, 8))], "rope": [SimpleNamespace(positions=np.arange(4))]}
    arrays = [*(rng.normal(size=shape) for shape in shapes), *rest.get(spec.op, [])]
    assert (spec.magnitude(*arrays) >= np.abs(spec.reference(*arrays)) - 1e-12).all()


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_rope_turns_pairs_and_leaves_the_rest(interleaved: bool) -> None:
    spec = Rope(heads=Dim(1), head_dim=6, frequencies=(1.0, 0.25), dtype="float32", scale=2.0, interleaved=interleaved)
    x = np.random.default_rng(2).normal(size=(3, 1, 6))
    made = spec.reference(x, SimpleNamespace(positions=np.array([0, 1, 5])))
    pairs = [(0, 1), (2, 3)] if interleaved else [(0, 2), (1, 3)]
    for token, position in enumerate((0, 1, 5)):
        for (a, b), frequency in zip(pairs, spec.frequencies, strict=True):
            turned = complex(x[token, 0, a], x[token, 0, b]) * 2 * np.exp(1j * position * frequency)
            np.testing.assert_allclose([made[token, 0, a], made[token, 0, b]], [turned.real, turned.imag], atol=1e-12)
    assert (made[..., 4:] == x[..., 4:]).all()


# Attention


def scene(lengths_and_counts: Sequence[tuple[int, int]], kv_heads: int = 3, poison: float = np.nan) -> tuple[Any, Any, list[Any]]:
    """(cell, batch, dense K and V of each row) over scattered blocks; whatever no row owns is poison."""
    rng = np.random.default_rng(3)
    widths = [-(-length // BLOCK_TOKENS) for length, _ in lengths_and_counts]
    ids = rng.permutation(np.arange(1, sum(widths) + 1))
    table = np.zeros((len(widths), max(widths)), np.int32)
    cell = SimpleNamespace(group=0, k=np.full((sum(widths) + 1, kv_heads, BLOCK_TOKENS, 8), poison))
    cell.v = np.full((*cell.k.shape[:-1], 5), poison)
    dense = []
    for row, ((length, _), width) in enumerate(zip(lengths_and_counts, widths, strict=True)):
        table[row, :width] = ids[sum(widths[:row]) :][:width]
        k, v = rng.normal(size=(length, kv_heads, 8)), rng.normal(size=(length, kv_heads, 5))
        for position in range(length):
            cell.k[table[row, position // BLOCK_TOKENS], :, position % BLOCK_TOKENS] = k[position]
            cell.v[table[row, position // BLOCK_TOKENS], :, position % BLOCK_TOKENS] = v[position]
        dense.append((k, v))
    counts = [count for _, count in lengths_and_counts]
    batch = SimpleNamespace(
        starts=np.concatenate(([0], np.cumsum(counts))), lengths=np.array([length for length, _ in lengths_and_counts]),
        groups=(GroupRows(table, None),),
    )
    return cell, batch, dense


def plainly(spec: Attention, q: Array, length: int, k: Array, v: Array, sinks: Array | None = None) -> Array:
    """An independent softmax: one query, one head and one key after the other."""
    out = np.zeros((len(q), spec.heads.size, spec.value_dim))
    for t in range(len(q)):
        position = length - len(q) + t
        for head in range(spec.heads.size):
            own = head // (spec.heads.size // spec.kv_heads.size)
            total, mixed = (0.0 if sinks is None else exp(sinks[head])), np.zeros(spec.value_dim)
            for key in range(position + 1):
                if spec.window is not None and position - key >= spec.window:
                    continue
                score = float(q[t, head] @ k[key, own]) * spec.scale
                score = score if spec.softcap is None else spec.softcap * tanh(score / spec.softcap)
                score += 0 if spec.alibi is None else spec.alibi[head] * (key - position)
                total, mixed = total + exp(score), mixed + exp(score) * v[key, own]
            out[t, head] = mixed / total
    return out


SLOPES = (0.5, 0.25, 0.125, 1.0, 0.0, -0.5)


def attention(**more: Any) -> Attention:
    return Attention(heads=Dim(6), kv_heads=Dim(3), key_dim=8, value_dim=5, scale=0.4, dtype="float32", **more)


@pytest.mark.parametrize(
    "more",
    [{}, {"window": 1}, {"window": 3}, {"window": 4}, {"window": 5}, {"window": 100}, {"softcap": 2.0}, {"sinks": True},
     {"window": 6, "softcap": 1.0, "sinks": True}, {"alibi": SLOPES}, {"alibi": SLOPES, "window": 4, "softcap": 2.0}],
    ids=lambda more: "-".join(f"{name}-{'slopes' if name == 'alibi' else value}" for name, value in more.items()) or "full",
)
def test_attention_is_an_independent_softmax(more: dict[str, Any]) -> None:
    spec, rows = attention(**more), [(9, 1), (6, 6), (13, 5), (1, 1)]
    cell, batch, dense = scene(rows)
    q = np.random.default_rng(4).normal(size=(13, 6, 8))
    sinks = np.linspace(-2, 2, 6) if spec.sinks else None
    found = spec.reference(q, cell, batch, None if sinks is None else [sinks])
    for row, ((length, _), (k, v)) in enumerate(zip(rows, dense, strict=True)):
        own = slice(batch.starts[row], batch.starts[row + 1])
        np.testing.assert_allclose(found[own], plainly(spec, q[own], length, k, v, sinks), rtol=1e-10, atol=1e-12)


def test_a_window_of_n_sees_n_keys_and_its_own_is_one_of_them() -> None:
    """With equal scores the answer is the mean of the values seen: here their positions."""
    cell, batch, _ = scene([(10, 10)], kv_heads=1)
    spec = Attention(heads=Dim(1), kv_heads=Dim(1), key_dim=8, value_dim=5, scale=1.0, dtype="float32", window=3)
    for position in range(10):
        cell.v[batch.groups[0].table[0, position // BLOCK_TOKENS], :, position % BLOCK_TOKENS] = position
    found = spec.reference(np.zeros((10, 1, 8)), cell, batch)[:, 0, 0]
    assert found.tolist() == pytest.approx([0, 0.5, *range(1, 9)])


def test_blocks_behind_a_window_are_never_read() -> None:
    spec = attention(window=3)
    cell, batch, _ = scene([(11, 2)])
    q = np.random.default_rng(5).normal(size=(2, 6, 8))
    before = spec.reference(q, cell, batch)
    batch.groups[0].table[0, :1] = 0
    assert (spec.reference(q, cell, batch) == before).all()


def test_a_row_without_tokens_answers_nothing() -> None:
    cell, batch, _ = scene([(5, 2)])
    batch.starts, batch.lengths = np.array([0, 2, 2, 2]), np.array([5, 0, 0])
    batch.groups = (GroupRows(np.concatenate((batch.groups[0].table, np.zeros((2, 2), np.int32))), None),)
    found = attention().reference(np.ones((4, 6, 8)), cell, batch)
    assert np.isfinite(found).all()
    assert not found[2:].any()


def test_gather_reads_no_position_but_those_it_names() -> None:
    cell, batch, dense = scene([(10, 1)])
    assert (gather(cell.k, batch.groups[0].table[0], 3, 9) == dense[0][0][3:9].transpose(1, 0, 2)).all()


def test_write_kv_writes_one_slot_per_token() -> None:
    cell = SimpleNamespace(group=0, k=np.zeros((3, 3, BLOCK_TOKENS, 8)), v=np.zeros((3, 3, BLOCK_TOKENS, 5)))
    k, v = np.random.default_rng(6).normal(size=(2, 3, 8)), np.random.default_rng(7).normal(size=(2, 3, 5))
    WRITE.reference(k, v, cell, SimpleNamespace(groups=(GroupRows(None, np.array([6, 8])),)))
    assert (cell.k[1, :, 2] == k[0]).all()
    assert (cell.v[2, :, 0] == v[1]).all()
    assert np.count_nonzero(cell.k) == k.size


# Experts


def test_the_router_gives_ties_to_the_lowest_expert() -> None:
    logits = np.array([[1, 3, 3, 0, 3, 2], [0, 0, 0, 0, 0, 0]], np.float32)
    experts, weights = ROUTER.reference(logits)
    assert experts.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_allclose(weights, 0.5)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_router_weights_are_the_gates_of_all_experts(sigmoid: bool) -> None:
    logits = np.array([[0.5, 2.0, -1.0]], np.float32)
    gates = 1 / (1 + np.exp(-logits)) if sigmoid else np.exp(logits) / np.exp(logits).sum()
    _, weights = Router(experts=Dim(3), top_k=2, renormalize=False, sigmoid=sigmoid).reference(logits)
    np.testing.assert_allclose(weights, [[gates[0, 1], gates[0, 0]]], rtol=1e-6)


def test_a_bias_of_the_router_decides_the_choice_and_not_the_weights() -> None:
    spec = Router(experts=Dim(4), top_k=2, sigmoid=True, bias=True, scale=2.5)
    experts, weights = spec.reference(np.array([[0.0, 3.0, 1.0, 2.0]]), [np.array([0.0, 0.0, 5.0, 1.0])])
    assert experts.tolist() == [[2, 3]]
    gates = 1 / (1 + np.exp([-1.0, -2.0]))
    np.testing.assert_allclose(weights, [2.5 * gates / gates.sum()])


def test_groups_of_experts_are_ranked_by_their_two_best() -> None:
    """The best expert of all stands in the worst pair, and is not among the chosen; nor is a dropped one where the rest is below 0."""
    spec = Router(experts=Dim(6), top_k=2, bias=True, groups=3, top_groups=2)
    even = np.zeros((1, 6))
    experts, _ = spec.reference(even, [np.array([0.9, 0.0, 0.5, 0.6, 0.6, 0.4])])
    assert experts.tolist() == [[3, 4]]
    experts, _ = spec.reference(even, [np.array([-9.0, -9.0, -5.0, -6.0, -6.0, -4.0])])
    assert experts.tolist() == [[5, 2]]


def test_a_limit_cuts_gates_above_and_ups_at_both_signs() -> None:
    spec = replace(MOE, limit=2.0, alpha=1.5)
    gate, up = np.array([-9.0, 1.0, 9.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 9.0, -9.0])
    cut, raised = np.array([-9.0, 1.0, 2.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, 3.0, -1.0])
    np.testing.assert_allclose(spec.gated(gate, up), cut / (1 + np.exp(-1.5 * cut)) * raised, rtol=1e-12)


def test_experts_have_biases_that_their_weights_scale() -> None:
    rng, spec = np.random.default_rng(8), replace(MOE, bias=True)
    shapes = [part.shape for part in spec.weight("g", "u", "d").parts]
    assert shapes == [(6, 4, 8), (6, 4, 8), (6, 8, 4), (6, 4), (6, 4), (6, 8)]
    gate, up, down, *biases = parts = [rng.normal(size=shape) for shape in shapes]
    x = rng.normal(size=8)
    found = spec.reference(x[None], np.array([[4, 1]]), np.array([[0.3, 0.6]]), parts, None)[0]
    made = [down[e] @ (FORMULAS["silu"](gate[e] @ x + biases[0][e]) * (up[e] @ x + biases[1][e])) + biases[2][e] for e in (4, 1)]
    np.testing.assert_allclose(found, 0.3 * made[0] + 0.6 * made[1], rtol=1e-10)


def test_a_part_of_a_stored_tensor_is_cut_out_and_turned() -> None:
    stored = np.arange(24.0).reshape(2, 2, 6)
    gate = View("gate_up", stored.shape, (..., slice(0, None, 2)), crosswise=True).of(stored)
    assert gate.tolist() == [[[0, 6], [2, 8], [4, 10]], [[12, 18], [14, 20], [16, 22]]]
    keys = View("kv", (4, 6), (slice(None), slice(0, 1)), split=(2, 2, 6)).of(stored.reshape(4, 6))
    assert keys.tolist() == [[[0, 1, 2, 3, 4, 5]], [[12, 13, 14, 15, 16, 17]]]


def test_each_head_has_a_product_of_its_own() -> None:
    rng = np.random.default_rng(9)
    x, weight = rng.normal(size=(4, 3, 8)), rng.normal(size=(3, 5, 8))
    found = HEAD_LINEAR.reference(x, [weight])
    for head in range(3):
        np.testing.assert_allclose(found[:, head], x[:, head] @ weight[head].T, rtol=1e-12)


def test_parts_put_together_are_what_was_taken_apart() -> None:
    x = np.random.default_rng(10).normal(size=(2, 3, 8)).astype(np.float32)
    first, second = SPLIT.reference(x)
    assert (first.shape, second.shape) == ((2, 3, 5), (2, 3, 3))
    np.testing.assert_array_equal(CONCAT.reference(first, second), x)


@pytest.mark.parametrize(("tokens", "experts"), [(0, 4), (1, 7), (33, 5)], ids=["no-tokens", "one-token", "odd-experts"])
def test_moe_applies_each_weight_once(tokens: int, experts: int) -> None:
    rng = np.random.default_rng(8)
    spec = Moe(experts=Dim(experts), embed=6, mlp=Dim(4), top_k=2, activation="silu", dtype="float32")
    x, weights = rng.normal(size=(tokens, 6)), rng.uniform(size=(tokens, 2))
    chosen = np.array([rng.permutation(experts)[:2] for _ in range(tokens)], np.int32).reshape(tokens, 2)
    gate, up, down = (rng.normal(size=shape) for shape in ((experts, 4, 6), (experts, 4, 6), (experts, 6, 4)))
    found = spec.reference(x, chosen, weights, [gate, up, down], None)
    assert found.shape == (tokens, 6)
    for t in range(tokens):
        made = [down[e] @ (FORMULAS["silu"](gate[e] @ x[t]) * (up[e] @ x[t])) for e in chosen[t]]
        np.testing.assert_allclose(found[t], weights[t, 0] * made[0] + weights[t, 1] * made[1], rtol=1e-10)
    assert [part.shape for part in spec.weight("g", "u", "d").parts] == [(experts, 4, 6), (experts, 4, 6), (experts, 6, 4)]


# Random numbers


@pytest.mark.parametrize(
    ("key", "counter", "bits"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_threefry_gives_the_known_answers(key: tuple[int, int], counter: tuple[int, int], bits: tuple[int, int]) -> None:
    """The vectors of Random123 (Salmon et al. 2011)."""
    found = threefry((np.uint32(key[0]), np.uint32(key[1])), (np.uint32(counter[0]), np.uint32(counter[1])))
    assert tuple(int(word[0]) for word in found) == bits


def test_a_uniform_depends_on_its_own_words_alone() -> None:
    words = np.array([[7, 8, 7], [-1, 0, -1], [0, 1, 0], [3, 3, 4]], np.int32)
    made = uniforms(*words, vocab=11)
    for row in range(3):
        assert (made[row] == uniforms(*(word[row : row + 1] for word in words), vocab=11)[0]).all()
    assert (made == uniforms(*words, vocab=12)[:, :11]).all()
    assert len({tuple(row) for row in made.tolist()}) == 3


def test_uniforms_stay_below_one_even_for_the_highest_word() -> None:
    """Seed 23 draws 24 ones for token 448,360. A uniform of 1 is a Gumbel of infinity: the token wins whatever its logit."""
    made = uniforms(np.array([23]), np.array([0]), np.array([0]), np.array([0]), vocab=448_361)
    assert made.min() > 0
    assert made.max() < 1


def test_uniforms_are_uniform() -> None:
    """Chi-square over 64 bins of 65,536 numbers: 103.4 is the 0.1 % point of 63 degrees of freedom."""
    made = uniforms(np.arange(64), np.zeros(64), np.zeros(64), np.zeros(64), vocab=1024)
    found = np.histogram(made, bins=64, range=(0, 1))[0]
    assert np.sum((found - 1024) ** 2 / 1024) < 103.4


# Sampling


def sampling_of(count: int, edits: int = 0, **values: Any) -> Any:
    _, _, sampling = empty(BatchShape(1, 1, count, (), 1, edits))
    sampling.temperature[:], sampling.top_p[:], sampling.repetition[:] = 1.0, 1.0, 1.0
    for name, value in values.items():
        getattr(sampling, name)[:] = value
    return sampling


def test_top_k_of_one_is_greedy_among_equals() -> None:
    logits = np.array([[1.0, 5.0, 5.0, 5.0]] * 50)
    assert draw(logits, sampling_of(50, top_k=1, seed_low=np.arange(50))).tolist() == [1] * 50


@pytest.mark.parametrize("top_k", [0, -1, 99], ids=["zero", "minus-one", "beyond"])
def test_a_top_k_of_nothing_keeps_everything(top_k: int) -> None:
    scores = np.array([3.0, 1.0, 2.0])
    assert (kept(scores, top_k, 1.0, 0.0) == scores).all()


KEPT: dict[str, tuple[Sequence[float], int, float, float, set[int]]] = {
    "top-k": ([1, 4, 2, 3], 2, 1.0, 0.0, {1, 3}),
    "top-k-ties-from-the-lowest-id": ([1, 3, 3, 3], 2, 1.0, 0.0, {1, 2}),
    "top-p-first-token-always": ([0, 9, 0, 0], 0, 0.001, 0.0, {1}),
    "top-p-reaches": ([log(0.5), log(0.25), log(0.125), log(0.125)], 0, 0.6, 0.0, {0, 1}),
    "top-p-exactly": ([0, 0, 0, 0], 0, 0.5, 0.0, {0, 1}),
    "top-p-of-what-top-k-left": ([log(0.4), log(0.3), log(0.2), log(0.1)], 2, 0.5, 0.0, {0}),
    "top-p-without-top-k": ([log(0.4), log(0.3), log(0.2), log(0.1)], 0, 0.5, 0.0, {0, 1}),
    "min-p": ([log(1.0), log(0.5), log(0.2), log(0.1)], 0, 1.0, 0.2 - 1e-9, {0, 1, 2}),
    "min-p-after-top-p": ([log(0.5), log(0.3), log(0.1), log(0.1)], 0, 0.85, 0.5, {0, 1}),
}


@pytest.mark.parametrize("name", KEPT)
def test_filters_keep_what_they_should_in_their_order(name: str) -> None:
    scores, top_k, top_p, min_p, wanted = KEPT[name]
    assert set(np.flatnonzero(np.isfinite(kept(np.array(scores, float), top_k, top_p, min_p)))) == wanted


def test_temperature_comes_before_the_filters() -> None:
    """At temperature 4 the three scores are near enough for top-p 0.6 to need two; at 1 the first one is enough."""
    logits = np.array([[4.0, 2.0, 0.0]] * 400)
    words = {"seed_low": np.arange(400), "top_p": 0.6}
    assert set(draw(logits, sampling_of(400, temperature=4.0, **words))) == {0, 1}
    assert set(draw(logits, sampling_of(400, temperature=1.0, **words))) == {0}


def test_edits_apply_penalties_then_the_bias() -> None:
    sampling = sampling_of(2, edits=6, repetition=2.0, presence=0.5, frequency=0.25)
    sampling.edit_sample[:5], sampling.edit_token[:5] = [0, 0, 0, 1, 1], [0, 1, 2, 2, 1]
    sampling.edit_seen[:5], sampling.edit_count[:5] = [1, 1, 0, 1, 0], [0, 3, 0, 1, 0]
    sampling.edit_bias[:5] = [0, 0, 7, 1, -np.inf]
    found = edited(np.array([[4.0, -4.0, 1.0], [4.0, -4.0, 1.0]]), sampling)
    np.testing.assert_allclose(found, [[2.0, -8.0 - 0.75 - 0.5, 8.0], [4.0, -np.inf, 0.5 - 0.25 - 0.5 + 1]])


def test_a_padding_edit_leaves_a_forbidden_logit_forbidden() -> None:
    logits = np.array([[-np.inf, 1.0]])
    assert (edited(logits, sampling_of(1, edits=1)) == logits).all()


def test_no_edit_changes_nothing() -> None:
    logits = np.ones((2, 3))
    assert edited(logits, sampling_of(2)) is logits


def test_log_probabilities_are_of_the_logits_best_first_and_ties_to_the_lowest_id() -> None:
    logits = np.array([[0.0, 2.0, 2.0, 1.0]])
    chosen, best, values = logprobs(logits, np.array([3]), 3)
    normal = logits - np.log(np.exp(logits).sum())
    assert best is not None
    assert best.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(values, normal[:, [1, 2, 3]], rtol=1e-6)
    np.testing.assert_allclose(chosen, normal[:, 3], rtol=1e-6)
    assert logprobs(logits, np.array([3]), -1) == (None, None, None)
    nothing = logprobs(logits, np.array([3]), 0)[1]
    assert nothing is not None
    assert nothing.shape == (1, 0)


def test_draws_follow_the_softmax() -> None:
    """Chi-square over 2,000 draws of 6 tokens: 20.5 is the 0.1 % point of 5 degrees of freedom."""
    count, logits = 2000, np.array([1.5, 1.0, 0.5, 0.0, -0.5, -1.0])
    found = np.bincount(draw(np.tile(logits, (count, 1)), sampling_of(count, seed_low=9, position=np.arange(count))), minlength=6)
    wanted = np.exp(logits) / np.exp(logits).sum() * count
    assert np.sum((found - wanted) ** 2 / wanted) < 20.5


@settings(max_examples=25, deadline=None)
@given(st.integers(-5, 20), st.floats(0.05, 1), st.floats(0, 0.5), st.floats(0, 3))
def test_a_rows_token_does_not_change_when_its_neighbour_does(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    logits = np.random.default_rng(10).normal(size=(2, 31)) * 2
    sampling = sampling_of(2, seed_low=[3, 4], temperature=[0.7, temperature], top_k=[5, top_k], top_p=[0.9, top_p])
    sampling.min_p[1] = min_p
    alone = sampling_of(1, seed_low=3, temperature=0.7, top_k=5, top_p=0.9)
    assert draw(logits, sampling)[0] == draw(logits[:1], alone)[0]


def test_sample_keeps_the_last_token_of_each_slot() -> None:
    _, batch, sampling = empty(BatchShape(1, 1, 3, (), 1))
    batch.sample_slot[:] = [2, 1, 0]
    state = SimpleNamespace(last_token=np.full(4, -1, np.int32))
    sampled = Sample(vocab=Dim(3)).reference(np.eye(3, dtype=np.float32), sampling, batch, state)
    assert sampled.tokens.tolist() == [0, 1, 2]
    assert state.last_token.tolist()[1:] == [1, 0, -1]


def test_derive_replaces_what_the_host_did_not_know() -> None:
    _, batch, _ = empty(BatchShape(3, 1, 1, (), 1))
    batch.tokens[:], batch.source[:] = [5, 6, 7], [-1, 2, 0]
    made = Derive().reference(batch, SimpleNamespace(last_token=np.array([8, 9, 10])))
    assert made.tokens.tolist() == [5, 10, 8]
    assert batch.tokens.tolist() == [5, 6, 7]


# Compositions


class References:
    """The facade `ops` over references, each result rounded to float32."""

    def __getattr__(self, op: str) -> Any:
        def call(spec: Spec, *arrays: Any) -> Any:
            assert spec.op == op
            made = spec.reference(*arrays)
            return None if made is None else made.astype(np.float32)

        return call


def test_a_composed_gate_is_within_the_bound_of_the_op() -> None:
    spec = GatedActivation(kind="silu", dtype="float32")
    gate, up = np.random.default_rng(11).normal(size=(2, 6, 7)).astype(np.float32)
    found = GATED_ACTIVATION.run(References(), spec, gate, up)
    assert within(found, spec.reference(gate, up), depth=spec.tolerance.depth) is None


def test_a_composed_residual_norm_is_no_worse_than_twice_a_naive_one() -> None:
    spec = AddRmsNorm(norm=NORM)
    x, residual = np.random.default_rng(12).normal(size=(2, 6, 8)).astype(np.float32)
    weight = [np.linspace(0.5, 2, 8, dtype=np.float32)]
    total = x + residual
    naive = total / np.sqrt(np.mean(total * total, -1, keepdims=True) + np.float32(1e-5)) * weight[0]
    for found, plain, wanted in zip(ADD_RMS_NORM.run(References(), spec, x, residual, weight), (naive, total),
                                    spec.reference(x, residual, weight), strict=True):
        assert naive_relative(found, plain, wanted) is None


def test_composed_rotation_and_writing_is_the_op() -> None:
    spec = QkvRopeWrite(query=ROPE, key=ROPE, write=WRITE)
    cells = [SimpleNamespace(group=0, k=np.zeros((2, 3, 4, 8)), v=np.zeros((2, 3, 4, 5))) for _ in range(2)]
    batch = SimpleNamespace(positions=np.array([3, 4]), groups=(GroupRows(None, np.array([3, 4])),))
    q, k, v = (np.random.default_rng(i).normal(size=(2, 3, dim)).astype(np.float32) for i, dim in ((13, 8), (14, 8), (15, 5)))
    found = QKV_ROPE_WRITE.run(References(), spec, q, k, v, cells[0], batch)
    wanted = spec.reference(q, k, v, cells[1], batch)
    assert within(found, wanted, depth=spec.tolerance.depth, magnitude=np.full(wanted.shape, np.abs(q).max() * 2)) is None
    np.testing.assert_allclose(cells[0].k, cells[1].k, rtol=1e-6)
    assert (cells[0].v == cells[1].v).all()


@pytest.mark.parametrize(
    "spec",
    [GatedActivation(kind="relu", dtype="float32"), AddRmsNorm(norm=NORM), QkvRopeWrite(query=ROPE, key=ROPE, write=WRITE)],
    ids=lambda spec: spec.op,
)
def test_a_default_calls_only_what_it_says_it_requires(spec: Spec) -> None:
    asked: list[Spec] = []

    class Recorder:
        def __getattr__(self, op: str) -> Any:
            return lambda part, *arrays: asked.append(part) or part.infer(*arrays)  # type: ignore[func-returns-value]

    heads = (floats(2, 3, 8), floats(2, 3, 8), floats(2, 3, 5), None, None)
    rows = (floats(2, 8), floats(2, 8), None)
    arrays = {"gated_activation": (floats(3), floats(3)), "add_rms_norm": rows, "qkv_rope_write": heads}
    DEFAULTS[spec.op].run(Recorder(), spec, *arrays[spec.op])
    assert set(asked) == set(DEFAULTS[spec.op].requires(spec))


# Tolerances


def test_exact_tells_apart_bits_dtypes_and_shapes() -> None:
    zero = np.zeros(3, np.float32)
    assert exact(zero, zero.copy()) is None
    assert "bits differ at [1]" in (exact(np.array([0, -0.0, 0], np.float32), zero) or "")
    assert "expected float32[3]" in (exact(zero.astype(np.float64), zero) or "")
    assert "expected float32[3]" in (exact(zero[:2], zero) or "")
    nan = np.full(2, np.nan, np.float32)
    assert exact(nan, nan.copy()) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_half_an_ulp_is_what_rounding_costs(dtype: Any) -> None:
    values = np.random.default_rng(16).normal(size=1000) * 10.0 ** np.random.default_rng(17).integers(-2, 3, 1000)
    error = np.abs(values.astype(dtype).astype(np.float64) - values)
    assert (error <= half_ulp(values, dtype)).all()
    assert (error > half_ulp(values, dtype) * 0.9).any()


def test_within_takes_a_rounding_and_no_more() -> None:
    expected = np.array([1.0, -3.0, 1e-3])
    rounded = expected.astype(ml_dtypes.bfloat16)
    assert within(rounded, expected, depth=0) is None
    wrong = rounded.copy()
    wrong[1] = -3.03125
    assert "outside its bound at [1]" in (within(wrong, expected, depth=8) or "")
    assert "has shape" in (within(rounded[:2], expected, depth=0) or "")


def test_within_scales_with_what_was_added_up() -> None:
    expected, off = np.array([0.0]), np.array([3e-6], np.float32)
    assert within(off, expected, depth=4) is not None
    assert within(off, expected, depth=4, magnitude=np.array([20.0])) is None


@pytest.mark.parametrize(
    ("actual", "expected", "fine"),
    [
        pytest.param(np.inf, np.inf, True, id="same-infinity"),
        pytest.param(-np.inf, np.inf, False, id="other-infinity"),
        pytest.param(1.0, np.inf, False, id="finite-for-infinity"),
        pytest.param(np.nan, 1.0, False, id="nan-for-number"),
        pytest.param(1.0, np.nan, False, id="number-for-nan"),
        pytest.param(np.nan, np.nan, True, id="both-nan"),
    ],
)
def test_within_on_what_is_not_finite(actual: float, expected: float, fine: bool) -> None:
    assert (within(np.array([actual], np.float32), np.array([expected]), depth=100) is None) == fine


def test_naive_relative_measures_the_maximum_and_the_rms() -> None:
    expected = np.linspace(1, 2, 100)
    naive = (expected + 1e-5).astype(np.float32)
    assert naive_relative((expected + 1.9e-5).astype(np.float32), naive, expected) is None
    skewed = (expected + np.linspace(0, 1.1e-5, 100)).astype(np.float32)
    assert "RMS" in (naive_relative((expected + 2.1e-5).astype(np.float32), skewed, expected) or "")
    spike = naive.copy()
    spike[3] += 1e-4
    assert "maximum error" in (naive_relative(spike, naive, expected) or "")
    assert "maximum error" in (naive_relative(np.full(100, np.nan, np.float32), naive, expected) or "")


# Batches


SHAPES = st.builds(
    BatchShape, tokens=st.integers(1, 9), rows=st.integers(1, 5), samples=st.integers(0, 5),
    blocks=st.lists(st.integers(1, 4), max_size=3).map(tuple), longest_query=st.integers(1, 9), edits=st.integers(0, 4),
)


@settings(max_examples=50, deadline=None)
@given(SHAPES)
def test_a_packed_batch_is_one_buffer_without_gaps_or_overlaps(shape: BatchShape) -> None:
    packed, batch, sampling = empty(shape)
    views = [*batch[:11], *(array for group in batch.groups for array in group), *sampling]
    for number, view in enumerate(views, start=1):
        view[...] = number
    again, sampling_again = unpack(shape, packed.integers, packed.floats)
    views_again = [*again[:11], *(array for group in again.groups for array in group), *sampling_again]
    for number, view in enumerate(views_again, start=1):
        assert (view == number).all()
    assert sum(view.size for view in views) == packed.integers.size + packed.floats.size
    assert packed.integers.all()
    assert packed.floats.all()


def test_views_have_the_shapes_that_their_docstrings_say() -> None:
    _, batch, sampling = empty(BatchShape(tokens=7, rows=3, samples=2, blocks=(5, 1), longest_query=4, edits=6))
    assert batch.tokens.shape == batch.source.shape == batch.positions.shape == batch.row.shape == (7,)
    assert batch.starts.shape == (4,)
    assert batch.lengths.shape == batch.slot.shape == batch.fresh.shape == batch.adapter.shape == (3,)
    assert batch.sample.shape == batch.sample_slot.shape == (2,)
    assert [(group.table.shape, group.slots.shape) for group in batch.groups] == [((3, 5), (7,)), ((3, 1), (7,))]
    assert sampling.top_k.shape == sampling.temperature.shape == (2,)
    assert sampling.edit_token.shape == sampling.edit_bias.shape == (6,)
    assert batch.tokens.dtype == sampling.top_k.dtype == np.int32
    assert sampling.edit_bias.dtype == np.float32


def test_words_of_a_seed_keep_all_their_bits() -> None:
    _, _, sampling = empty(BatchShape(1, 1, 2, (), 1))
    sampling.seed_low[:], sampling.seed_high[:] = [-1, -(2**31)], [0, 2**31 - 1]
    found = uniforms(sampling.seed_low, sampling.seed_high, sampling.index, sampling.position, vocab=4)
    wanted = uniforms(np.array([0xFFFFFFFF, 0x80000000]), np.array([0, 0x7FFFFFFF]), np.zeros(2), np.zeros(2), vocab=4)
    assert (found == wanted).all()


# State groups and weights


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layers": ()}, "has no layers"), ({"window": 0}, "window 0"), ({"block_tokens": 0}, "blocks of 0 tokens")],
    ids=["no-layers", "no-window", "no-tokens"],
)
def test_a_state_group_that_holds_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        StateGroup(**({"name": "full", "layers": (0,), "arrays": {}} | change))


def test_a_blocks_bytes_count_every_array_and_layer() -> None:
    group = StateGroup("full", (0, 1, 2), {"k": StateArray(2, 8, "bfloat16"), "v": StateArray(2, 4, "float32")}, block_tokens=16)
    assert group.block_bytes({"bfloat16": 2, "float32": 4}) == 3 * 16 * (2 * 8 * 2 + 2 * 4 * 4)


def test_a_weight_table_names_every_tensor_once() -> None:
    shared = Weight((Tensor("e", (5, 2), (None, None)),))
    table = WeightTable(top={"embed": shared, "head": shared}, layers=[{"norm": Weight((Tensor("n", (2,), (None,)),))}])
    assert set(table.tensors()) == {"e", "n"}


def test_a_scope_tells_which_weights_there_are() -> None:
    scope = Scope({"norm": 1})
    assert scope.norm == 1
    with pytest.raises(AttributeError, match="declares no weight 'nrom' here; declared: norm"):
        _ = scope.nrom
