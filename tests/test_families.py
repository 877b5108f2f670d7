"""The torch and JAX families: every kernel against its float64 reference, and one graph unchanged on NumPy, torch and jax.jit."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.rig import Rig
from inferplane.core.graph import DERIVE
from inferplane.core.loader import Loaded, LoadOptions, load
from inferplane.core.request import Request, SamplingParams
from inferplane.core.runner import Runner, pack
from inferplane.core.scheduler.plan import RowPlan, StepPlan
from inferplane.errors import CapacityError
from inferplane.model_zoo.base import UNQUANTIZED, Model
from inferplane.model_zoo.deepseek_v3 import DeepseekV3
from inferplane.model_zoo.gemma2 import Gemma2
from inferplane.model_zoo.gpt_oss import GptOss
from inferplane.model_zoo.llama import Llama
from inferplane.model_zoo.mistral import Mistral
from inferplane.model_zoo.mixtral import Mixtral
from inferplane.ops import (
    DTYPES,
    Activation,
    Add,
    AddRmsNorm,
    Attention,
    BatchShape,
    Derive,
    Dim,
    Embedding,
    GatedActivation,
    Kernel,
    LayerNorm,
    Linear,
    Moe,
    Multiply,
    Packed,
    QkvRopeWrite,
    RmsNorm,
    Rope,
    Router,
    Sample,
    Scale,
    Scheme,
    Scope,
    Spec,
    StateArray,
    StateGroup,
    TakeRows,
    WriteKV,
    empty,
    unpack,
)
from inferplane.ops.elementwise import FORMULAS
from inferplane.ops.quantize import dequantized, quantize, quantized_rows
from inferplane.ops.threefry import uniforms
from inferplane.ops.tolerance import exact, naive_relative, within
from inferplane.platforms.contract import CONTRACT, Availability, Buckets, Capabilities, Options, Platform
from inferplane.platforms.families.supports import SCHEMES
from inferplane.platforms.reference import Reference

Array = np.ndarray[Any, Any]
NOTHING = empty(BatchShape(1, 1, 1, (), 1))[0]
BLOCK_TOKENS = 4
SMALL_BUCKETS = Buckets(tokens=(1, 4, 32), rows=(4,), samples=(4,), blocks=(8,), edits=(0, 8))
DTYPE_IDS = ("float32", "bfloat16")


def torch_cpu(dtypes: Sequence[str] = ("float32", "bfloat16")) -> Platform:
    torch = pytest.importorskip("torch")
    from inferplane.platforms.families.torch import TorchPlatform

    class TorchCpu(TorchPlatform):
        name, contract = "torch-cpu", CONTRACT
        capabilities = Capabilities(dtypes=tuple(dtypes), block_tokens=(BLOCK_TOKENS,), schemes=SCHEMES)

        @classmethod
        def probe(cls, options: Options) -> Availability:
            return Availability(True, "torch on any machine")

        def find_device(self, options: Options) -> Any:
            return torch.device("cpu")

    return TorchCpu(Options())


def jax_cpu() -> Platform:
    jax = pytest.importorskip("jax")
    from inferplane.platforms.families.jax import JaxPlatform

    class JaxCpu(JaxPlatform):
        name, contract = "jax-cpu", CONTRACT
        capabilities = Capabilities(("float32", "bfloat16"), block_tokens=(BLOCK_TOKENS,), buckets=SMALL_BUCKETS, schemes=SCHEMES)

        @classmethod
        def probe(cls, options: Options) -> Availability:
            return Availability(True, "JAX on any machine")

        def find_device(self, options: Options) -> Any:
            return jax.devices("cpu")[0]

    return JaxCpu(Options())


class NumpyReference(Reference):
    capabilities = replace(Reference.capabilities, block_tokens=(BLOCK_TOKENS,))


FAMILIES: dict[str, Callable[[], Platform]] = {"torch": torch_cpu, "jax": jax_cpu}


@pytest.fixture(scope="module", params=FAMILIES)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    made = FAMILIES[request.param]()
    yield made
    made.close()


def kernel_for(platform: Platform, spec: Spec) -> Kernel:
    return next(kernel for kernel in platform.kernels() if kernel.op == spec.op and kernel.supports(spec) is None)


class Given(Enum):
    """What stands in a call for something that the step brings."""

    WEIGHT, CELL, BATCH, SAMPLING, STATE = range(5)


WEIGHT = Given.WEIGHT
COMPILED: dict[Any, Any] = {}
"""Steps by platform, spec, shape and kinds of arguments: few programs for many calls."""


def run(
    platform: Platform, spec: Spec, *arguments: Any, parts: Sequence[Array] = (), packed: Packed = NOTHING, state: Any = None,
) -> Any:
    """The family's kernel in a compiled step of its own, from host arrays to host arrays; `parts` are prepared as its weight."""
    kernel = kernel_for(platform, spec)
    weight = kernel.prepare(spec, parts) if kernel.prepare else tuple(platform.put(part) for part in parts)
    arrays = tuple(platform.put(one) for one in arguments if isinstance(one, np.ndarray))
    kinds = tuple(one if isinstance(one, Given) else type(one) for one in arguments)

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        placed = iter(weights[1])
        bring = {
            Given.WEIGHT: lambda: weights[0], Given.CELL: lambda: state[0], Given.BATCH: lambda: batch,
            Given.SAMPLING: lambda: sampling, Given.STATE: lambda: state,
            np.ndarray: lambda: next(placed), type(None): lambda: None,
        }
        return kernel.run(spec, *(bring[kind]() for kind in kinds))

    key = (platform.name, spec, packed.shape, kinds)
    if key not in COMPILED:
        COMPILED[key] = platform.compile(step, packed.shape)
    state = platform.allocate([], [], slots=1) if state is None else state
    return platform.submit(COMPILED[key], (weight, arrays), state, packed).result()


def rounded(values: Array, dtype: str) -> Array:
    return np.asarray(values).astype(DTYPES[dtype])


# Ops without state


@dataclass
class Case:
    """One call: a spec for a dtype, host arrays, weight parts, and the arguments behind the arrays."""

    id: str
    spec: Callable[[str], Any]
    shapes: Sequence[tuple[int, ...]]
    parts: Sequence[tuple[int, ...]] = ()
    tail: tuple[Any, ...] = ()
    spread: float = 1.0

    def make(self, dtype: str) -> tuple[Any, list[Array], list[Array]]:
        rng = np.random.default_rng(sum(map(ord, self.id)))
        draw = lambda shape: rounded(rng.normal(size=shape) * self.spread, dtype)  # noqa: E731
        return self.spec(dtype), [draw(shape) for shape in self.shapes], [draw(shape) for shape in self.parts]


def linear_of(outputs: Sequence[int], **more: Any) -> Callable[[str], Linear]:
    return lambda dtype: Linear(input=Dim(37, "embed"), outputs=tuple(Dim(n) for n in outputs), dtype=dtype, **more)


LINEARS = [
    Case("one-output", linear_of([5]), [(3, 37)], [(5, 37)], (WEIGHT, None)),
    Case("one-token-bias", linear_of([5], bias=True), [(1, 37)], [(5, 37), (5,)], (WEIGHT, None)),
    Case("no-tokens", linear_of([5]), [(0, 37)], [(5, 37)], (WEIGHT, None)),
    Case("fused", linear_of([8, 3, 1]), [(7, 37)], [(8, 37), (3, 37), (1, 37)], (WEIGHT, None)),
    Case("fused-bias", linear_of([4, 6], bias=True), [(7, 37)], [(4, 37), (6, 37), (4,), (6,)], (WEIGHT, None)),
    Case("float32-out", linear_of([9], out_dtype="float32"), [(5, 37)], [(9, 37)], (WEIGHT, None)),
    Case("float32-out-bias", linear_of([9], out_dtype="float32", bias=True), [(5, 37)], [(9, 37), (9,)], (WEIGHT, None)),
]
ROWS = [
    Case("add", lambda d: Add(dtype=d), [(5, 7), (5, 7)]),
    Case("multiply", lambda d: Multiply(dtype=d), [(5, 7), (5, 7)]),
    Case("scale", lambda d: Scale(factor=1 / 3, dtype=d), [(5, 7)]),
    *(Case(f"activation-{kind}", lambda d, kind=kind: Activation(kind=kind, dtype=d), [(9, 31)], spread=3.0)
      for kind in FORMULAS),
    *(Case(f"gated-{kind}", lambda d, kind=kind: GatedActivation(kind=kind, dtype=d), [(9, 31), (9, 31)])
      for kind in FORMULAS),
    Case("rms_norm", lambda d: RmsNorm(size=33, epsilon=1e-5, dtype=d), [(5, 33)], [(33,)], (WEIGHT,)),
    Case("rms_norm-offset", lambda d: RmsNorm(size=33, epsilon=1e-5, dtype=d, offset=1.0), [(5, 2, 33)], [(33,)], (WEIGHT,)),
    Case("layer_norm", lambda d: LayerNorm(size=33, epsilon=1e-5, dtype=d), [(5, 33)], [(33,), (33,)], (WEIGHT,)),
    Case("layer_norm-no-bias", lambda d: LayerNorm(size=33, epsilon=1e-5, dtype=d, bias=False), [(5, 33)], [(33,)], (WEIGHT,)),
]


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize("case", LINEARS + ROWS, ids=lambda case: case.id)
def test_a_kernel_stays_within_its_ops_bound(platform: Platform, case: Case, dtype: str) -> None:
    spec, arrays, parts = case.make(dtype)
    plain = [*arrays, *((parts if one is WEIGHT else one) for one in case.tail)]
    expected, magnitude = spec.reference(*plain), spec.magnitude(*plain)
    actual = run(platform, spec, *arrays, *case.tail, parts=parts)
    if not isinstance(expected, tuple):
        actual, expected, magnitude = (actual,), (expected,), (magnitude,)
    for found, wanted, size in zip(actual, expected, magnitude or [None] * len(expected), strict=True):
        assert found.dtype == DTYPES[getattr(spec, "out_dtype", None) or dtype]
        assert within(found, wanted, depth=spec.tolerance.depth, magnitude=size) is None


QUANTIZED = (
    "int8:a8", "int8:rall", "int8:g8:zeros:bfloat16:a8g16", "int4:g16:float16:a8g8", "int4:g5:zeros", "float8_e4m3fn:g16:r4:af8g16",
    "float8_e4m3fn:af8",
)


def strange_rows(inputs: int) -> Array:
    """Numbers, zeros, a NaN, an infinity, next to nothing, and ties."""
    x = np.random.default_rng(5).normal(size=(7, inputs)).astype(np.float32)
    x[1], x[4] = 0, 1e-42
    x[2, 3], x[3, 1] = np.nan, -np.inf
    x[5] = np.resize([127.0, 0.5, 1.5, -2.5], inputs)
    return x


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize("text", QUANTIZED)
def test_a_quantized_linear_is_the_product_of_what_its_codes_stand_for(platform: Platform, text: str, dtype: str) -> None:
    scheme, rng = Scheme.parse(text), np.random.default_rng(3)
    spec = Linear(input=Dim(37), outputs=(Dim(9), Dim(5)), dtype=dtype, bias=True, out_dtype="float32", scheme=scheme)
    parts: list[Any] = [quantize(rng.normal(size=(dim.size, 37)), scheme) for dim in spec.outputs]
    parts += [rounded(rng.normal(size=dim.size), dtype) for dim in spec.outputs]
    x = rounded(rng.normal(size=(6, 37)), dtype)
    expected, magnitude = spec.reference(x, parts, None), spec.magnitude(x, parts, None)
    for place, found in enumerate(run(platform, spec, x, WEIGHT, None, parts=parts)):
        assert found.dtype == np.float32
        assert within(found, expected[place], depth=spec.tolerance.depth, magnitude=magnitude[place]) is None
    plain = np.asarray(x, np.float64) @ dequantized(parts[0], scheme).T
    assert scheme.activation is None or not np.allclose(expected[0], plain + parts[2].astype(np.float64), rtol=1e-4)
    assert [one.shape for one in run(platform, spec, x[:0], WEIGHT, None, parts=parts)] == [(0, 9), (0, 5)]


@pytest.mark.parametrize("text", [text for text in QUANTIZED if ":a" in text])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_get_the_codes_and_scales_of_the_definition(family: str, text: str) -> None:
    """Ties, zeros, NaN and infinities included."""
    platform, scheme, x = FAMILIES[family](), Scheme.parse(text), strange_rows(37)
    ours = import_module(f"inferplane.platforms.families.{family}.quantized").quantized_rows
    packed, state = NOTHING, platform.allocate([], [], slots=1)
    step = platform.compile(lambda weights, *_: ours(weights, scheme), packed.shape)
    codes, scales = platform.submit(step, platform.put(x), state, packed).result()
    platform.close()
    wanted, sizes = quantized_rows(x, scheme)
    finite = np.isfinite(np.repeat(sizes, scheme.activation_group or 37, axis=-1)[:, :37])
    assert exact(np.asarray(scales)[..., 0], np.where(sizes < 1e-40, np.asarray(scales)[..., 0], sizes)) is None
    found = np.asarray(codes).reshape(7, -1)[:, :37]
    assert found.dtype == wanted.dtype
    assert (found.astype(np.float32) == wanted.astype(np.float32))[finite].all()


def test_the_schemes_that_are_declared_are_those_that_are_taken(platform: Platform) -> None:
    assert find("contract.schemes").run(Rig(platform)).verdict is Verdict.PASS
    broken = SimpleNamespace(name=platform.name, capabilities=replace(platform.capabilities, schemes=()), kernels=platform.kernels)
    told = find("contract.schemes").run(Rig(broken))  # type: ignore[arg-type]
    assert told.verdict is Verdict.FAIL and "takes the scheme" in told.detail


@pytest.mark.parametrize("dtype", DTYPE_IDS)
def test_picks_are_exact(platform: Platform, dtype: str) -> None:
    rng = np.random.default_rng(0)
    table, x = rounded(rng.normal(size=(11, 6)), dtype), rounded(rng.normal(size=(7, 6)), dtype)
    tokens, rows = np.array([3, 0, 10, 3], np.int32), np.array([6, 6, 0], np.int32)
    picked = run(platform, Embedding(vocab=Dim(11), size=6, dtype=dtype), tokens, WEIGHT, parts=[table])
    assert exact(picked, table[tokens]) is None
    assert exact(run(platform, TakeRows(size=Dim(6), dtype=dtype), x, rows), x[rows]) is None


@pytest.mark.parametrize("dtype", DTYPE_IDS)
def test_add_rms_norm_is_no_worse_than_twice_a_naive_one(platform: Platform, dtype: str) -> None:
    rng = np.random.default_rng(1)
    spec = AddRmsNorm(norm=RmsNorm(size=33, epsilon=1e-5, dtype=dtype))
    x, residual, weight = (rounded(rng.normal(size=shape), dtype) for shape in ((6, 33), (6, 33), (33,)))
    actual = run(platform, spec, x, residual, WEIGHT, parts=[weight])
    expected = spec.reference(x, residual, [weight])
    total = rounded(x.astype(np.float32) + residual.astype(np.float32), dtype)
    scaled = rounded(total / np.sqrt(np.mean(total.astype(np.float32) ** 2, -1, keepdims=True) + np.float32(1e-5)), dtype)
    for found, naive, wanted in zip(actual, (rounded(scaled * weight, dtype), total), expected, strict=True):
        assert naive_relative(found, naive, wanted) is None


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("turned", [4, 8], ids=["partial", "whole"])
def test_rope_turns_by_float32_angles_even_far_out(platform: Platform, turned: int, interleaved: bool, dtype: str) -> None:
    frequencies = tuple(10000.0 ** (-j / turned * 2) for j in range(turned // 2))
    spec = Rope(heads=Dim(3), head_dim=8, frequencies=frequencies, dtype=dtype, scale=1.25, interleaved=interleaved)
    x = rounded(np.random.default_rng(2).normal(size=(5, 3, 8)), dtype)
    packed, batch, _ = empty(BatchShape(5, 1, 1, (), 5))
    batch.positions[:] = [0, 1, 777, 32767, 131071]
    actual = run(platform, spec, x, Given.BATCH, packed=packed)
    assert within(actual, spec.reference(x, batch), depth=spec.tolerance.depth, magnitude=spec.magnitude(x, batch)) is None


# Experts


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-they-are", "renormalized"])
@pytest.mark.parametrize("tokens", [0, 1, 9], ids="{}-tokens".format)
def test_the_router_gives_ties_to_the_lowest_expert(platform: Platform, tokens: int, renormalize: bool, sigmoid: bool) -> None:
    logits = np.round(np.random.default_rng(3).normal(size=(tokens, 7)) * 2).astype(np.float32)
    spec = Router(experts=Dim(7), top_k=3, renormalize=renormalize, sigmoid=sigmoid)
    experts, weights = run(platform, spec, logits)
    wanted_experts, wanted = spec.reference(logits)
    assert exact(experts, wanted_experts) is None
    assert within(weights, wanted, depth=spec.tolerance.depth) is None


def one_by_one(matrix: Array, vector: Array) -> Array:
    """matrix @ vector, its products added up from left to right in float32."""
    products = matrix.astype(np.float32) * vector.astype(np.float32)
    summed: Array = np.cumsum(products, axis=-1, dtype=np.float32)[..., -1]
    return summed


def naive_moe(spec: Moe, x: Array, experts: Array, weights: Array, parts: Sequence[Array], dtype: str) -> Array:
    out = np.zeros(x.shape, np.float32)
    single = lambda values: rounded(values, dtype).astype(np.float32)  # noqa: E731
    for token, (ids, shares) in enumerate(zip(experts, weights, strict=True)):
        for expert, share in zip(ids, shares, strict=True):
            gate, up = (single(one_by_one(part[expert], x[token])) for part in parts[:2])
            hidden = single(single(FORMULAS[spec.activation](gate)) * up)
            out[token] = single(out[token] + single(share * single(one_by_one(parts[2][expert], hidden))))
    return rounded(out, dtype)


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(0, 4, 2), (1, 7, 2), (5, 6, 3), (70, 5, 2), (40, 3, 3)],
    ids=["no-tokens", "one-token", "few", "several-tiles", "all-experts"],
)
def test_moe_applies_each_weight_once_at_its_rank(platform: Platform, tokens: int, experts: int, top_k: int, dtype: str) -> None:
    rng = np.random.default_rng(4)
    spec = Moe(experts=Dim(experts), embed=64, mlp=Dim(48), top_k=top_k, activation="silu", dtype=dtype)
    x = rounded(rng.normal(size=(tokens, 64)), dtype)
    chosen = np.array([rng.permutation(experts)[:top_k] for _ in range(tokens)], np.int32).reshape(tokens, top_k)
    weights = rng.uniform(0.1, 2, (tokens, top_k)).astype(np.float32)
    parts = [rounded(rng.normal(size=shape), dtype) for shape in ((experts, 48, 64), (experts, 48, 64), (experts, 64, 48))]
    actual = run(platform, spec, x, chosen, weights, WEIGHT, None, parts=parts)
    assert actual.shape == x.shape
    assert actual.dtype == x.dtype
    if tokens:
        naive = naive_moe(spec, x, chosen, weights, parts, dtype)
        assert naive_relative(actual, naive, spec.reference(x, chosen, weights, parts, None)) is None


# State and attention


def rows_of(*lengths_and_counts: tuple[int, int]) -> list[RowPlan]:
    """Rows of `count` new tokens that end at `length`, over scattered blocks that no two rows share."""
    blocks = sum(-(-length // BLOCK_TOKENS) for length, _ in lengths_and_counts)
    ids = np.random.default_rng(5).permutation(np.arange(1, 1 + blocks))
    made, start = [], 0
    for slot, (length, count) in enumerate(lengths_and_counts, start=1):
        width = -(-length // BLOCK_TOKENS)
        request = Request(f"r{slot}", np.arange(length), SamplingParams(temperature=0.0), max_tokens=4)
        tokens = np.arange(count, dtype=np.int32)
        table = ids[start : start + width].astype(np.int32)
        made.append(RowPlan(request, slot, length - count, count, tokens, False, True, (table,), False))
        start += width
    return made


@dataclass
class Scene:
    """A ragged step over poisoned blocks: only positions below each row's length hold numbers."""

    spec: Any
    rows: list[RowPlan]
    dtype: str
    poison: float = np.nan
    buckets: Buckets | None = None

    @cached_property
    def group(self) -> StateGroup:
        return StateGroup("full", (0,), writing(self.spec).arrays, block_tokens=BLOCK_TOKENS)

    @cached_property
    def blocks(self) -> int:
        return 1 + sum(len(row.tables[0]) for row in self.rows)

    @cached_property
    def cell(self) -> Any:
        """The reference's own cell [blocks, kv_heads, block_tokens, dim]."""
        rng = np.random.default_rng(6)
        made = {}
        for name, one in self.group.arrays.items():
            array = poisoned((self.blocks, one.heads, BLOCK_TOKENS, one.dim), one.dtype, self.poison)
            for row in self.rows:
                block, offset = np.divmod(np.arange(row.length), BLOCK_TOKENS)
                array[row.tables[0][block], :, offset] = held(rng, (row.length, one.heads, one.dim), one)
            made[name] = array
        return SimpleNamespace(group=0, **made)

    @cached_property
    def packed(self) -> Packed:
        return pack(self.rows, [self.group], self.buckets, sample=[0])

    def host_batch(self) -> Any:
        return unpack(*self.packed)[0]

    def state(self, platform: Platform) -> Any:
        state = platform.allocate([self.group], [self.blocks], slots=len(self.rows))
        canonical = {name: canonical_of(getattr(self.cell, name))[None] for name in self.group.arrays}
        platform.write_blocks(state, 0, range(self.blocks), canonical)
        return state

    @property
    def tokens(self) -> int:
        return self.packed.shape.tokens

    def query(self) -> Array:
        return rounded(np.random.default_rng(7).normal(size=(self.tokens, self.spec.heads.size, self.spec.key_dim)), self.dtype)


def writing(spec: Attention) -> WriteKV:
    """The write whose cell `spec` reads."""
    return WriteKV(kv_heads=spec.kv_heads, key_dim=spec.key_dim, value_dim=spec.value_dim, dtype=spec.dtype, kv_dtype=spec.kv_dtype,
                   latent=spec.latent)


def poisoned(shape: tuple[int, ...], dtype: str, poison: float) -> Array:
    """Codes of int8 have no NaN: any will do."""
    return np.full(shape, 99, np.int8) if dtype == "int8" else rounded(np.full(shape, poison), dtype)


def held(rng: np.random.Generator, shape: tuple[int, ...], array: StateArray) -> Array:
    """Numbers as a cell may hold them: floats, codes, or the scales of codes."""
    if array.dtype == "int8":
        return rng.integers(-127, 128, shape).astype(np.int8)
    if array.dim == 1:
        return rng.uniform(0.01, 0.1, shape).astype(np.float32)
    return rounded(rng.normal(size=shape) * (100 if array.dtype.startswith("float8") else 1), array.dtype)


def canonical_of(paged: Array) -> Array:
    """[blocks, heads, block_tokens, dim] -> [heads, tokens, dim]."""
    return paged.swapaxes(0, 1).reshape(paged.shape[1], -1, paged.shape[-1])


def naive_attention(scene: Scene, q: Array, sinks: Array | None) -> Array:
    """One query and one head at a time, every intermediate rounded to the dtype."""
    spec, batch = scene.spec, scene.host_batch()
    single = lambda values: rounded(values, scene.dtype).astype(np.float32)  # noqa: E731
    out = np.zeros((*q.shape[:-1], spec.value_dim), np.float32)
    for r, row in enumerate(scene.rows):
        keys, values = (single(part.transpose(1, 0, 2)) for part in spec.gathered(scene.cell, row.tables[0], 0, row.length))
        for t in range(batch.starts[r], batch.starts[r + 1]):
            position = row.start + t - batch.starts[r]
            seen = slice(0 if spec.window is None else max(0, position - spec.window + 1), position + 1)
            for head in range(spec.heads.size):
                own = head * spec.kv_heads.size // spec.heads.size
                scores = single(single(one_by_one(keys[seen, own], q[t, head])) * np.float32(spec.scale))
                if spec.softcap is not None:
                    scores = single(spec.softcap * single(np.tanh(single(scores / np.float32(spec.softcap)))))
                if spec.alibi is not None:
                    scores = scores + np.float32(spec.alibi[head]) * (np.arange(seen.start, seen.stop) - position).astype(np.float32)
                scores = scores if sinks is None else np.append(scores, sinks[head].astype(np.float32))
                weights = np.exp(scores - scores.max())
                weights = single(weights / weights.sum())[: seen.stop - seen.start]
                out[t, head] = one_by_one(values[seen, own].T, weights)
    return rounded(out, scene.dtype)


SLOPES = (0.5, 0.25, 0.125, 1.0, 0.0, -0.5)
MIXED = ((9, 1), (6, 6), (21, 5), (1, 1), (17, 1))
ATTENTIONS: dict[str, tuple[dict[str, Any], Sequence[tuple[int, int]]]] = {
    "decode": ({}, [(9, 1), (1, 1), (16, 1), (13, 1)]),
    "prefill": ({}, [(37, 37)]),
    "prefill-behind-a-prefix": ({}, [(40, 3)]),
    "mixed": ({}, MIXED),
    "many-turns": ({}, [(301, 2), (290, 40)]),
    "one-head": ({"heads": 1, "kv_heads": 1}, MIXED),
    "ungrouped": ({"heads": 3, "kv_heads": 3}, MIXED),
    "key-and-value-dims-differ": ({"value_dim": 5}, MIXED),
    "window-1": ({"window": 1}, MIXED),
    "window-4": ({"window": 4}, MIXED),
    "window-7-of-whole-tiles": ({"window": 7}, [(61, 1), (51, 34), (33, 33)]),
    "window-4-decode": ({"window": 4}, [(9, 1), (14, 1), (3, 1)]),
    "softcap": ({"softcap": 5.0}, MIXED),
    "sinks": ({"sinks": True}, MIXED),
    "alibi": ({"alibi": SLOPES}, MIXED),
    "alibi-and-a-window": ({"alibi": SLOPES, "window": 5, "softcap": 3.0, "sinks": True}, [(61, 1), (51, 34), (33, 33)]),
    "latent": ({"latent": True, "kv_heads": 1, "value_dim": 5}, MIXED),
    "latent-in-codes": ({"latent": True, "kv_heads": 1, "value_dim": 5, "kv_dtype": "int8"}, MIXED),
    "int8": ({"kv_dtype": "int8"}, MIXED),
    "int8-and-a-window": ({"kv_dtype": "int8", "window": 7, "value_dim": 5}, [(61, 1), (51, 34), (33, 33)]),
    "float8": ({"kv_dtype": "float8_e4m3fn"}, MIXED),
    "everything": ({"window": 5, "softcap": 3.0, "sinks": True, "value_dim": 3}, MIXED),
}


def attention_of(dtype: str, *, heads: int = 6, kv_heads: int = 2, value_dim: int = 8, **more: Any) -> Attention:
    return Attention(heads=Dim(heads), kv_heads=Dim(kv_heads), key_dim=8, value_dim=value_dim, scale=8**-0.5, dtype=dtype, **more)


def attend(platform: Platform, scene: Scene, q: Array, sinks: Array | None = None) -> Array:
    more, parts = ([], []) if sinks is None else ([WEIGHT], [sinks])
    state = scene.state(platform)
    made: Array = run(platform, scene.spec, q, Given.CELL, Given.BATCH, *more, parts=parts, packed=scene.packed, state=state)
    return made


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_over_poisoned_blocks(platform: Platform, name: str, dtype: str) -> None:
    kind, rows = ATTENTIONS[name]
    scene = Scene(attention_of(dtype, **kind), rows_of(*rows), dtype)
    q = scene.query()
    sinks = rounded(np.random.default_rng(8).normal(size=scene.spec.heads.size), dtype) if scene.spec.sinks else None
    actual = attend(platform, scene, q, sinks)
    expected = scene.spec.reference(q, scene.cell, scene.host_batch(), None if sinks is None else [sinks])
    assert actual.dtype == DTYPES[dtype]
    assert naive_relative(actual, naive_attention(scene, q, sinks), expected) is None


@pytest.mark.parametrize("name", ["decode", "mixed", "window-4", "many-turns"])
def test_unused_slots_do_not_reach_a_single_bit(platform: Platform, name: str) -> None:
    kind, rows = ATTENTIONS[name]
    spec, poisons = attention_of("float32", **kind), (np.nan, np.inf, -3e38, 0.0)
    scenes = [Scene(spec, rows_of(*rows), "float32", poison) for poison in poisons]
    first, *others = (attend(platform, scene, scene.query()) for scene in scenes)
    assert all(exact(other, first) is None for other in others)


def test_padding_of_a_bucket_changes_nothing_and_answers_zeros(platform: Platform) -> None:
    tight = Scene(attention_of("float32", window=6), rows_of((9, 1), (6, 6)), "float32")
    padded = replace(tight, buckets=SMALL_BUCKETS)
    assert padded.tokens > tight.tokens
    q = padded.query()
    actual, expected = attend(platform, padded, q), attend(platform, tight, q[: tight.tokens])
    np.testing.assert_allclose(actual[: tight.tokens], expected, rtol=1e-6, atol=1e-6)
    assert not actual[tight.tokens :].any()


def test_a_walk_in_small_turns_agrees_with_one_in_large(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = torch_cpu()
    from inferplane.platforms.families.torch import attention

    scene = Scene(attention_of("float32", window=9, sinks=True), rows_of(*MIXED), "float32")
    sinks = np.linspace(-1, 1, 6, dtype=np.float32)
    whole = attend(platform, scene, scene.query(), sinks)
    monkeypatch.setattr(attention, "GATHERED_ELEMENTS", 1)
    np.testing.assert_allclose(attend(platform, scene, scene.query(), sinks), whole, rtol=1e-5, atol=1e-6)
    platform.close()


@pytest.mark.parametrize("dtype", DTYPE_IDS)
def test_write_kv_writes_its_slots_and_no_other(platform: Platform, dtype: str) -> None:
    scene = Scene(attention_of(dtype), rows_of((9, 2), (6, 6)), dtype, poison=7.0)
    spec = WriteKV(kv_heads=Dim(2), key_dim=8, value_dim=8, dtype=dtype)
    k, v = (rounded(np.random.default_rng(i).normal(size=(8, 2, 8)), dtype) for i in (9, 10))
    state = scene.state(platform)
    assert run(platform, spec, k, v, Given.CELL, Given.BATCH, packed=scene.packed, state=state) is None
    spec.reference(k, v, scene.cell, scene.host_batch())
    found = platform.read_blocks(state, 0, range(1, scene.blocks))
    for name in "kv":
        assert exact(found[name][0], canonical_of(getattr(scene.cell, name)[1:])) is None


CELLS: dict[str, dict[str, Any]] = {
    "int8": {"kv_dtype": "int8"}, "float8": {"kv_dtype": "float8_e4m3fn"}, "latent": {"latent": True},
    "latent-int8": {"latent": True, "kv_dtype": "int8"},
}


@pytest.mark.parametrize("dtype", DTYPE_IDS)
@pytest.mark.parametrize("name", CELLS)
def test_codes_and_scales_are_the_references_to_the_bit(platform: Platform, name: str, dtype: str) -> None:
    """Rows of zeros, of large and of tiny numbers, and with an infinity or NaN among them."""
    scene = Scene(attention_of(dtype, **CELLS[name]), rows_of((90, 80), (6, 6)), dtype, poison=7.0)
    spec, rng = writing(scene.spec), np.random.default_rng(9)
    k, v = (rounded(rng.normal(size=(86, 2, 8)) * np.exp2(rng.uniform(-20, 20, (86, 2, 1))), dtype) for _ in range(2))
    for array in (k, v):
        array[3], array[4, 0, 2], array[5, 1, 0], array[6, 1, 7] = 0, np.inf, -np.inf, np.nan
    state = scene.state(platform)
    values = None if spec.latent else v
    assert run(platform, spec, k, values, Given.CELL, Given.BATCH, packed=scene.packed, state=state) is None
    spec.reference(k, values, scene.cell, scene.host_batch())
    found = platform.read_blocks(state, 0, range(1, scene.blocks))
    assert set(found) == set(spec.arrays)
    for part in found:
        assert exact(found[part][0], canonical_of(getattr(scene.cell, part)[1:])) is None


def test_qkv_rope_write_turns_q_and_k_and_writes(platform: Platform) -> None:
    turn = lambda heads: Rope(heads=Dim(heads), head_dim=8, frequencies=(1.0, 0.1, 0.01), dtype="float32")  # noqa: E731
    spec = QkvRopeWrite(query=turn(6), key=turn(2), write=WriteKV(kv_heads=Dim(2), key_dim=8, value_dim=8, dtype="float32"))
    scene = Scene(attention_of("float32"), rows_of((9, 2), (6, 6)), "float32", poison=0.0)
    rng = np.random.default_rng(11)
    q, k, v = (rng.normal(size=(8, heads, 8)).astype(np.float32) for heads in (6, 2, 2))
    state = scene.state(platform)
    actual = run(platform, spec, q, k, v, Given.CELL, Given.BATCH, packed=scene.packed, state=state)
    expected = spec.reference(q, k, v, scene.cell, scene.host_batch())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    found = platform.read_blocks(state, 0, range(scene.blocks))
    for name in "kv":
        np.testing.assert_allclose(found[name][0], canonical_of(getattr(scene.cell, name)), rtol=1e-5, atol=1e-6)


# Sampling


SAMPLES, EDITS, LOGPROBS = 32, 8, 2


def samples(vocab: int = 97, **settings: Any) -> tuple[Packed, Array, Any, Any]:
    """(packed, logits, and the host's views of batch and sampling); each setting is one value or one per sample."""
    packed, batch, sampling = empty(BatchShape(1, 1, SAMPLES, (), 1, EDITS, logprobs=LOGPROBS))
    sampling.repetition[:], sampling.top_p[:], sampling.temperature[:] = 1.0, 1.0, 1.0
    sampling.seed_low[:] = np.arange(SAMPLES) * 7919 - 5
    sampling.seed_high[:], sampling.index[:], sampling.position[:] = -1, np.arange(SAMPLES) % 3, np.arange(SAMPLES) + 100
    batch.sample_slot[:] = np.arange(SAMPLES) + 1
    for name, value in settings.items():
        getattr(sampling, name)[:] = value
    logits = np.random.default_rng(12).normal(size=(SAMPLES, vocab)).astype(np.float32) * 3
    return packed, logits, batch, sampling


def draw(platform: Platform, packed: Packed, logits: Array, state: Any = None) -> Any:
    spec = Sample(vocab=Dim(logits.shape[1], "vocab"))
    state = platform.allocate([], [], slots=SAMPLES) if state is None else state
    return run(platform, spec, logits, Given.SAMPLING, Given.BATCH, Given.STATE, packed=packed, state=state)


def assert_sampled_alike(found: Any, wanted: Any) -> None:
    assert exact(found.tokens, wanted.tokens) is None
    assert exact(found.top_tokens, wanted.top_tokens) is None
    np.testing.assert_allclose(found.logprob, wanted.logprob, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.top_logprobs, wanted.top_logprobs, rtol=1e-5, atol=1e-6)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cold": {"temperature": 0.3},
    "top-k": {"top_k": 5},
    "top-k-beyond-the-vocabulary": {"top_k": 1000},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.1},
    "all-filters": {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    "each-its-own": {"top_k": [0, 1, 3, -1] * 8, "top_p": [1, 0.5, 0.9, 0.2] * 8, "temperature": [0, 1, 2, 0.5] * 8},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("vocab", [2, 97], ids="vocab-{}".format)
def test_samples_are_the_references(platform: Platform, vocab: int, name: str) -> None:
    packed, logits, batch, sampling = samples(vocab, **SETTINGS[name])
    state, host = platform.allocate([], [], slots=SAMPLES), SimpleNamespace(last_token=np.zeros(SAMPLES + 1, np.int32))
    assert_sampled_alike(draw(platform, packed, logits, state), Sample(vocab=Dim(vocab)).reference(logits, sampling, batch, host))
    assert exact(platform.fetch(state.last_token), host.last_token) is None


def test_edits_change_what_is_drawn_and_log_probabilities_do_not_show_it(platform: Platform) -> None:
    packed, logits, batch, sampling = samples(repetition=1.7, presence=0.5, frequency=0.25, temperature=[0, 1, 0, 1] * 8)
    sampling.edit_sample[:6], sampling.edit_token[:6] = [0, 0, 1, 2, 2, 3], [0, 3, 1, 4, 0, 2]
    sampling.edit_seen[:6], sampling.edit_count[:6] = [1, 0, 1, 1, 0, 0], [2, 0, 1, 0, 0, 0]
    sampling.edit_bias[:6] = [0, 40, -np.inf, 0, -np.inf, 90]
    sampled = draw(platform, packed, logits)
    host = SimpleNamespace(last_token=np.zeros(SAMPLES + 1, np.int32))
    assert_sampled_alike(sampled, Sample(vocab=Dim(97)).reference(logits, sampling, batch, host))
    assert sampled.tokens[[0, 3]].tolist() == [3, 2]


@pytest.mark.parametrize("count", [-1, 0], ids=["none", "of-the-token-alone"])
def test_log_probabilities_are_told_where_they_are_asked_for(platform: Platform, count: int) -> None:
    packed, logits, *_ = samples(5)
    sampled = draw(platform, packed._replace(shape=replace(packed.shape, logprobs=count)), logits)
    assert (sampled.logprob is None, sampled.top_tokens is None) == (count < 0, count < 0)
    assert count < 0 or sampled.top_tokens.shape == (SAMPLES, 0)


def test_a_padding_edit_of_a_forbidden_logit_changes_nothing(platform: Platform) -> None:
    packed, logits, *_ = samples(temperature=0.0)
    logits[0, 0] = -np.inf
    assert draw(platform, packed, logits).tokens.tolist() == logits.argmax(-1).tolist()


def test_top_k_of_one_is_greedy_among_equals(platform: Platform) -> None:
    packed, logits, *_ = samples(top_k=1)
    logits[:, [11, 30, 49]] = 20.0
    assert draw(platform, packed, logits).tokens.tolist() == [11] * SAMPLES


def test_uniforms_are_equal_to_the_bit(platform: Platform) -> None:
    _, _, sampling = empty(BatchShape(1, 1, 6, (), 1))
    sampling.seed_low[:], sampling.seed_high[:] = [0, -1, 2**31 - 1, -(2**31), 5, 6], [-1, 0, 5, 6, 7, 8]
    sampling.index[:], sampling.position[:] = [0, 0, 0, 1, 2, 3], [0, 1, 2**30, 7, 7, 7]
    words = (sampling.seed_low, sampling.seed_high, sampling.index, sampling.position)
    family = import_module(f"inferplane.platforms.families.{platform.name.removesuffix('-cpu')}.threefry")
    made = platform.fetch(family.uniforms(*map(platform.put, words), vocab=33))
    assert exact(made, uniforms(*words, vocab=33)) is None


def test_a_rows_tokens_do_not_depend_on_its_neighbours(platform: Platform) -> None:
    packed, logits, _, sampling = samples(temperature=0.9)
    alone = draw(platform, packed, logits).tokens[::2].tolist()
    sampling.top_k[1::2], sampling.top_p[1::2], sampling.temperature[1::2] = 3, 0.4, 1.7
    logits[1::2] = 0
    assert draw(platform, packed, logits).tokens[::2].tolist() == alone


def test_samples_follow_the_filtered_distribution(platform: Platform) -> None:
    """Chi-square over 3,200 draws; 5 kept tokens, so 4 degrees of freedom: 18.5 is the 0.1 % point."""
    packed, logits, _, sampling = samples(top_k=5, seed_low=42, seed_high=3, index=0)
    logits[:] = np.linspace(6, -6, 97, dtype=np.float32)
    drawn = []
    for step in range(100):
        sampling.position[:] = np.arange(SAMPLES) + step * SAMPLES
        drawn.append(draw(platform, packed, logits).tokens)
    found = np.bincount(np.concatenate(drawn), minlength=97)
    wanted = np.exp(logits[0, :5]) / np.exp(logits[0, :5]).sum() * 3200
    assert not found[5:].any()
    assert np.sum((found[:5] - wanted) ** 2 / wanted) < 18.5


def test_derive_fetches_the_last_tokens(platform: Platform) -> None:
    packed, batch, _ = empty(BatchShape(4, 1, 1, (), 1))
    batch.tokens[:], batch.source[:] = [5, 6, 7, 8], [-1, 2, -1, 1]
    state = platform.allocate([], [], slots=3)
    state.last_token = platform.put(np.array([9, 10, 11, 12], np.int32))
    assert run(platform, Derive(), Given.BATCH, Given.STATE, packed=packed, state=state).tokens.tolist() == [5, 11, 7, 10]


# The rest of the platform


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "int8"])
def test_arrays_come_back_as_they_went(platform: Platform, dtype: str) -> None:
    host = np.arange(-6, 6).reshape(3, 4)[:, ::-1].astype(DTYPES[dtype])
    host.flags.writeable = False
    assert exact(platform.fetch(platform.put(host)), host) is None


def test_a_placed_array_is_a_copy(platform: Platform) -> None:
    host = np.zeros(64, np.float32)
    placed = platform.put(host)
    host[:] = 1
    assert not platform.fetch(placed).any()


def test_blocks_travel_in_canonical_form(platform: Platform) -> None:
    group = StateGroup("full", (1, 4, 2), {"k": StateArray(2, 3, "bfloat16"), "v": StateArray(2, 5, "float32")}, block_tokens=4)
    state = platform.allocate([group], [7], slots=2)
    rng = np.random.default_rng(13)
    shapes = {"k": ((3, 2, 12, 3), "bfloat16"), "v": ((3, 2, 12, 5), "float32")}
    blocks = {name: rounded(rng.normal(size=shape), dtype) for name, (shape, dtype) in shapes.items()}
    platform.write_blocks(state, 0, [5, 1, 6], blocks)
    platform.copy_blocks(state, 0, [1, 5], [2, 3])
    found = platform.read_blocks(state, 0, [3, 2, 6])
    for name in "kv":
        assert exact(found[name], blocks[name]) is None
        assert not platform.read_blocks(state, 0, [4])[name].any()


def test_a_groups_layers_keep_their_order(platform: Platform) -> None:
    group = StateGroup("full", (4, 1), {"k": StateArray(1, 1, "float32")}, block_tokens=1)
    state = platform.allocate([group], [2], slots=1)
    platform.write_blocks(state, 0, [1], {"k": np.array([40.0, 10.0], np.float32).reshape(2, 1, 1, 1)})
    assert platform.fetch(state[4].k)[1].item() == 40.0
    assert platform.fetch(state[1].k)[1].item() == 10.0


def test_state_that_does_not_fit_says_so() -> None:
    group = StateGroup("full", (0,), {"k": StateArray(64, 128, "float32")})
    platform = torch_cpu()
    with pytest.raises(CapacityError, match="ask for fewer"):
        platform.allocate([group], [2**40], slots=1)
    platform.close()


def test_memory_is_told(platform: Platform) -> None:
    assert 0 < platform.memory().free <= platform.memory().total


def test_a_failed_step_tells_its_error_and_the_next_one_runs(platform: Platform) -> None:
    packed, batch, _ = empty(BatchShape(1, 1, 1, (), 1))
    batch.tokens[:] = 3
    state = platform.allocate([], [], slots=1)

    def failing(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        raise ValueError("a step's own error")

    with pytest.raises(ValueError, match="a step's own error"):
        platform.submit(platform.compile(failing, packed.shape), (), state, packed).result()
    working = platform.compile(lambda weights, state, batch, sampling: {"tokens": [batch.tokens]}, packed.shape)
    assert platform.submit(working, (), state, packed).result()["tokens"][0].tolist() == [3]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_platform_class_is_imported_without_its_framework(family: str) -> None:
    code = f"import inferplane.platforms.families.{family}, sys; sys.exit({family!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Linear(input=Dim(4), outputs=(Dim(4),), dtype="float32", scheme=Scheme("int4"), out_dtype="float16"), "out_dtype float16"),
        (Add(dtype="float64"), "dtype float64"),
    ],
    ids=["out-dtype", "float64"],
)
def test_what_is_not_supported_has_a_reason(platform: Platform, spec: Spec, reason: str) -> None:
    answers = [kernel.supports(spec) for kernel in platform.kernels() if kernel.op == spec.op]
    assert all(answer is not None for answer in answers)
    assert any(reason in (answer or "") for answer in answers)


def test_every_op_of_the_contract_has_a_kernel(platform: Platform) -> None:
    composed = {"gated_linear"}
    assert {kernel.op for kernel in platform.kernels()} == set(Spec.families) - composed


# One graph, three frameworks

CONFIG = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu",
}
MODELS: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "llama": (Llama, CONFIG),
    "mistral": (Mistral, CONFIG | {"model_type": "mistral", "sliding_window": 6}),
    "gemma2": (Gemma2, CONFIG | {
        "model_type": "gemma2", "layer_types": ["sliding_attention"] * 2, "sliding_window": 6, "head_dim": 4,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 9.0,
    }),
    "mixtral": (Mixtral, CONFIG | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}),
    "gpt_oss": (GptOss, CONFIG | {
        "model_type": "gpt_oss", "layer_types": ["sliding_attention"] * 2, "sliding_window": 6, "head_dim": 4,
        "num_local_experts": 5, "num_experts_per_tok": 2, "swiglu_limit": 1.0,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0},
    }),
    "deepseek_v3": (DeepseekV3, CONFIG | {
        "model_type": "deepseek_v3", "num_key_value_heads": 6, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
        "topk_group": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 12,
        "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
    }),
}


class RandomSource:
    """Weights drawn by name, so that every platform gets the same."""

    fingerprint = "random"
    precision = UNQUANTIZED

    def __init__(self, model: str) -> None:
        family, self.config = MODELS[model]
        table = family(self.config, dtype="float32", block_tokens=4).weights
        self.shapes = {name: one.shape for name, one in table.tensors().items()}

    def check(self, weights: Any) -> None:
        """Everything is there."""

    def tensor(self, name: str) -> Array:
        rng = np.random.default_rng(sum(map(ord, name)))
        shape = self.shapes[name]
        return (rng.normal(size=shape) * (shape[-1] ** -0.5) * 1.5 + (len(shape) == 1)).astype(np.float32)


def watched(loaded: Loaded) -> Callable[..., Any]:
    """The model's step, which tells its logits too."""
    graph, ops = loaded.graph, loaded.graph.ops
    spec = Sample(vocab=Dim(loaded.model.vocab_size, "vocab"))

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        batch = ops.derive(DERIVE, batch, state)
        logits = loaded.model.head(ops, Scope(weights.top), graph.hidden(weights, state, batch), batch)
        return ops.sample(spec, logits, sampling, batch, state), logits

    return step


PROMPTS = {1: np.arange(7) * 5 % 61, 2: np.arange(19) * 11 % 61, 3: np.arange(11) * 17 % 61}
TABLES = {1: np.array([9, 2, 5], np.int32), 2: np.array([1, 8, 3, 10, 7, 12], np.int32), 3: np.array([4, 11, 6], np.int32)}


STEPS = (
    ((1, 0, 7), (2, 0, 19)),
    ((1, 7, 1), (2, 19, 1), (3, 0, 5)),
    ((1, 8, 1), (3, 5, 6), (2, 20, 1)),
    ((3, 11, 1), (2, 21, 1), (1, 9, 1)),
    ((2, 22, 1),),
)
"""Each row a (slot, start, count): prefill, mixed with a prompt in chunks, then decode; drawn tokens stay on the device."""


def plans(params: SamplingParams) -> Iterator[list[RowPlan]]:
    requests = {slot: Request(f"r{slot}", prompt, params, max_tokens=8) for slot, prompt in PROMPTS.items()}
    for step in STEPS:
        rows = []
        for slot, start, count in step:
            prompt = requests[slot].prompt
            decode = start >= len(prompt)
            tokens = np.zeros(1, np.int32) if decode else prompt[start : start + count]
            sample = start + count >= len(prompt)
            rows.append(RowPlan(requests[slot], slot, start, count, tokens, decode, sample, (TABLES[slot],), False))
        yield rows


def follow(platform: Platform, model: str, temperatures: Sequence[float]) -> list[tuple[Array, Array]]:
    """(tokens, logits) of each step of a run per temperature, all submitted before the first answer is read."""
    loaded = load(RandomSource(model), platform, LoadOptions(dtype="float32"))
    step, compiled, pending = watched(loaded), {}, []
    for temperature in temperatures:
        runner = Runner(loaded, blocks=[13], slots=3)
        for number, rows in enumerate(plans(SamplingParams(temperature=temperature, top_k=20, seed=5))):
            chosen = tuple(i for i, row in enumerate(rows) if row.sample)
            packed = runner.batch(step_plan(number, rows, chosen), lambda key: [])
            if packed.shape not in compiled:
                compiled[packed.shape] = platform.compile(step, packed.shape)
            pending.append((len(chosen), platform.submit(compiled[packed.shape], loaded.weights, runner.state, packed)))
    answers = [(count, one.result()) for count, one in pending]
    platform.close()
    return [(sampled.tokens[:count], logits[:count]) for count, (sampled, logits) in answers]


def step_plan(number: int, rows: list[RowPlan], chosen: tuple[int, ...]) -> StepPlan:
    return StepPlan(number, 0.0, tuple(rows), chosen, sum(row.count for row in rows))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_gives_the_same_tokens_on_every_framework(family: str, model: str) -> None:
    """Greedy and drawn, with mixed prefill and decode rows, on arrays of NumPy, of torch, and of jax.jit with donated state."""
    found = follow(FAMILIES[family](), model, (0.0, 1.0))
    wanted = follow(NumpyReference(Options()), model, (0.0, 1.0))
    for (tokens, logits), (wanted_tokens, wanted_logits) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(logits, wanted_logits, rtol=1e-4, atol=1e-4 * np.abs(wanted_logits).max())
        assert tokens.tolist() == wanted_tokens.tolist()


def test_a_torch_step_never_reads_the_device() -> None:
    """No .item(), no branch on a value, no size that depends on data: each would make the host wait for an accelerator."""
    platform = torch_cpu()
    from torch.utils._python_dispatch import TorchDispatchMode

    class Unread(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert function.name().removeprefix("aten::") not in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
            return function(*args, **(kwargs or {}))

    loaded = load(RandomSource("mistral"), platform, LoadOptions(dtype="float32"))
    runner, whole = Runner(loaded, blocks=[13], slots=3), watched(loaded)
    moe = Moe(experts=Dim(4), embed=8, mlp=Dim(4), top_k=2, activation="silu", dtype="float32")
    handle = kernel_for(platform, moe).prepare(moe, [np.ones((4, *shape), np.float32) for shape in ((4, 8), (4, 8), (8, 4))])
    router = Router(experts=Dim(4), top_k=2)

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        with Unread():
            sampled, logits = whole(weights, state, batch, sampling)
            chosen = kernel_for(platform, router).run(router, logits[:, :4])
            return sampled, kernel_for(platform, moe).run(moe, logits[:, :8], *chosen, handle, batch)

    for number, rows in enumerate(plans(SamplingParams(top_k=20, top_p=0.9, seed=5, repetition_penalty=1.2, logprobs=2))):
        chosen = tuple(i for i, row in enumerate(rows) if row.sample)
        packed = runner.batch(step_plan(number, rows, chosen), lambda key: [3, 4])
        platform.submit(platform.compile(step, packed.shape), loaded.weights, runner.state, packed).result()
    platform.close()


def test_jax_compiles_one_program_per_bucket_and_consumes_the_state() -> None:
    platform = jax_cpu()
    loaded = load(RandomSource("llama"), platform, LoadOptions(dtype="float32"))
    runner = Runner(loaded, blocks=[13], slots=3)
    before = runner.state[0].k
    request = Request("r1", PROMPTS[1], SamplingParams(temperature=0.0), max_tokens=4)
    for start, count in ((0, 5), (5, 2), (7, 1), (8, 1)):
        tokens = request.prompt[start : start + count] if start < 7 else np.zeros(1, np.int32)
        row = RowPlan(request, 1, start, count, tokens, start >= 7, True, (TABLES[1],), False)
        runner.submit(step_plan(start, [row], (0,)), lambda key: []).result()
    assert before.is_deleted()
    assert len(runner._compiled) == 3
    assert all(program._cache_size() == 1 for program in runner._compiled.values())


def test_a_tied_embedding_is_placed_once(platform: Platform) -> None:
    source = RandomSource("llama")
    source.config = source.config | {"tie_word_embeddings": True}
    loaded = load(source, platform, LoadOptions(dtype="float32"))
    assert loaded.weights.top["head"][0] is loaded.weights.top["embed"][0]
    assert loaded.placed_twice == ()
