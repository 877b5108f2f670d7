"""Triton's products under its interpreter, as both vendors' chips would choose them: floats, codes, experts, planted bugs."""
from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.rig import Rig
from inferplane.ops import DTYPES, Dim, GatedActivation, GatedLinear, Linear, Moe, Router, Scheme
from inferplane.ops.quantize import quantize, quantized_rows
from inferplane.ops.tolerance import within
from inferplane.platforms.contract import Options

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from inferplane.platforms.cuda import Cuda  # noqa: E402
from inferplane.platforms.families.torch.arrays import host, tensor  # noqa: E402
from inferplane.platforms.families.triton import experts, linear, quantized, widen_kernel  # noqa: E402
from inferplane.platforms.families.triton.fp8 import as_fnuz  # noqa: E402
from inferplane.platforms.families.triton.launches import Launch  # noqa: E402
from inferplane.platforms.families.triton.target import TARGETS  # noqa: E402
from inferplane.platforms.rocm import Rocm  # noqa: E402

VENDORS = {"cuda": Cuda, "rocm": Rocm}


@cache
def device(platform: str) -> Any:
    return VENDORS[platform](Options("interpreted")).runs_on


class OnlyProducts(Cuda):
    """`cuda:interpreted` with no other kernel to hide behind."""

    def __init__(self) -> None:
        super().__init__(Options("interpreted"))

    def kernels(self) -> Any:
        return [*linear.kernels(self.runs_on), *quantized.kernels(self.runs_on), *experts.kernels(self.runs_on)]


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear_of(inputs: int, *outputs: int, scheme: str | None = None, dtype: str = "float32", **given: Any) -> Linear:
    return Linear(input=Dim(inputs), outputs=tuple(map(Dim, outputs)), dtype=dtype, scheme=None if scheme is None else Scheme.parse(scheme),
                  **given)


def parts_of(spec: Linear) -> list[Any]:
    """Random weights with a value that becomes the code -0, and biases."""
    parts: list[Any] = [numbers(7 + place, dim.size, spec.input.size) for place, dim in enumerate(spec.outputs)]
    for part in parts:
        part[0, 0] = -1e-9
    parts = [part.astype(DTYPES[spec.dtype]) if spec.scheme is None else quantize(part, spec.scheme) for part in parts]
    biases = [numbers(57 + place, dim.size).astype(DTYPES[spec.dtype]) for place, dim in enumerate(spec.outputs)]
    return parts + (biases if spec.bias else [])


def made(spec: Linear, tokens: int, platform: str = "cuda", strided: bool = False) -> list[tuple[Any, Any, Any]]:
    """(what the kernel makes, the reference, the magnitude) for each output."""
    x = numbers(1, tokens, spec.input.size).astype(DTYPES[spec.dtype])
    x[0, 0], x[-1, 0] = -1e-9, 6
    parts = parts_of(spec)
    family = linear if spec.scheme is None else quantized
    name = "quantized_linear" if spec.scheme else "fused_linear" if len(spec.outputs) > 1 else "linear"
    [kernel] = (one for one in family.kernels(device(platform)) if one.name == f"triton.{name}")
    assert kernel.supports(spec) is None
    handle = kernel.prepare(spec, parts) if kernel.prepare else tuple(map(tensor, parts))
    placed = tensor(np.pad(x, ((0, 0), (3, 5))))[:, 3:-5] if strided else tensor(x)
    out = kernel.run(spec, placed, handle, None)
    results = (out, spec.reference(x, parts, None), spec.magnitude(x, parts, None))
    several = zip(*(one if isinstance(one, tuple) else (one,) for one in results), strict=True)
    return [(host(one), wanted, size) for one, wanted, size in several]


def complaints(spec: Linear, tokens: int, platform: str = "cuda", strided: bool = False) -> list[str]:
    """Why results are not the reference's. Codes are the reference's own, so the sums alone may be off."""
    results = made(spec, tokens, platform, strided)
    reasons = (within(one, wanted, depth=spec.input.size + 8, magnitude=size) for one, wanted, size in results)
    return [reason for reason in reasons if reason is not None]


# Floats.

SHAPES = ((1, 1, (1,)), (1, 257, (130,)), (2, 31, (3,)), (3, 300, (17,)), (65, 257, (130,)), (5, 1030, (64, 3)), (1, 130, (33, 2, 140)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_product_is_the_references_whatever_its_sizes(shape: tuple[int, int, tuple[int, ...]], dtype: str) -> None:
    tokens, inputs, outputs = shape
    assert not complaints(linear_of(inputs, *outputs, dtype=dtype, bias=True), tokens)


def test_a_head_answers_in_float32() -> None:
    [(out, _, _)] = made(linear_of(300, 17, dtype="bfloat16", out_dtype="float32"), 3)
    assert out.dtype == np.float32
    assert not complaints(linear_of(300, 17, dtype="bfloat16", out_dtype="float32"), 3)


def test_no_rows_make_no_rows() -> None:
    spec = linear_of(8, 5)
    out = linear.linear(device("cuda"), spec, torch.empty(0, 8), (torch.ones(5, 8),), None)
    assert out.shape == (0, 5)


def test_sums_that_are_split_repeat_themselves_to_the_bit() -> None:
    first, again = (made(linear_of(1030, 64), 5)[0][0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("tiles", "steps", "splits"), [(1, 64, 16), (64, 64, 5), (64, 6, 1), (400, 64, 1), (8, 9, 2)], ids=str)
def test_inputs_are_split_until_the_chip_is_filled_and_no_split_is_empty(tiles: int, steps: int, splits: int) -> None:
    config = Launch({"BLOCK_ROWS": 16, "BLOCK_OUTPUTS": 64}, {})
    found, counted, number = linear.divided(device("cuda"), config, 16, 64 * tiles, steps)
    assert (counted, number) == (tiles, splits)
    assert (number - 1) * -(-steps // number) < steps
    assert linear.divided(device("cuda"), replace(found, meta={**found.meta, "SPLITS": 2}), 16, 64 * tiles, 64)[2] == 2


def test_the_resolution_says_who_multiplies_many_rows() -> None:
    first, ours, *_ = linear.kernels(device("rocm"))
    assert (first.name, ours.name) == ("triton.linear+hipblaslt", "triton.linear")
    assert "interpreter" in str(first.supports(linear_of(8, 5)))
    on_chip = replace(device("cuda"), target=TARGETS["sm_90"])
    library = linear.kernels(on_chip)[0]
    assert library.supports(linear_of(8, 5)) is None
    asked: list[int] = []

    def told(spec: Any, x: Any, weight: Any, batch: Any) -> Any:
        asked.append(len(x))

    linear.few_or_many(on_chip, told, linear_of(8, 5, dtype="bfloat16"), torch.ones(33, 8, dtype=torch.bfloat16), (), None)
    linear.few_or_many(device("cuda"), told, linear_of(8, 5), torch.ones(1, 8), (torch.ones(5, 8),), None)
    assert asked == [33]


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_a_gate_opens_its_up_in_one_pass_or_two(tokens: int, kind: str) -> None:
    spec = GatedLinear(linear=linear_of(257, 130, 130, bias=True), activation=GatedActivation(kind=kind, dtype="float32"))
    x, parts = numbers(1, tokens, 257), parts_of(spec.linear)
    *_, kernel = linear.kernels(device("cuda"))
    assert kernel.op == "gated_linear" and kernel.supports(spec) is None and kernel.prepare is not None
    out = host(kernel.run(spec, tensor(x), kernel.prepare(spec, parts), None))
    magnitude = spec.magnitude(x, parts, None)
    assert within(out, spec.reference(x, parts, None), depth=spec.tolerance.depth, halves=3, magnitude=magnitude) is None


# Codes.

SCHEMES = (
    "int8", "int8:rall", "int8:g32:zeros", "int8:g64:float16", "int8:g24:zeros", "int8:g128:r128",
    "int4", "int4:g32:float16", "int4:g64:zeros:bfloat16", "int4:g20:zeros", "int4:g64:r32",
    "float8_e4m3fn", "float8_e4m3fn:g128:r128", "float8_e4m3fn:g20:float16",
    "int8:a8", "int8:a8g32", "int8:g32:zeros:a8g128", "int8:af8", "int4:a8", "int4:g32:zeros:a8g32", "int4:g128:a8", "int4:g64:af8g64",
    "float8_e4m3fn:af8", "float8_e4m3fn:rall:af8", "float8_e4m3fn:g128:r128:af8g128", "float8_e4m3fn:a8",
)


@pytest.mark.parametrize("platform", VENDORS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_multiply_to_what_they_stand_for(scheme: str, platform: str) -> None:
    assert not complaints(linear_of(300, 140, 17, scheme=scheme, dtype="bfloat16", bias=True), 3, platform)


@pytest.mark.parametrize("scheme", ["int8:g32:zeros", "int4:g32:zeros:a8g32", "int4", "float8_e4m3fn:g128:r128:af8g128"])
@pytest.mark.parametrize("shape", [(1, 1, (1,)), (70, 67, (130,)), (2, 1030, (5,))], ids=str)
def test_codes_of_any_size_are_multiplied_in_float32(scheme: str, shape: tuple[int, int, tuple[int, ...]]) -> None:
    tokens, inputs, outputs = shape
    assert not complaints(linear_of(inputs, *outputs, scheme=scheme), tokens)


@pytest.mark.parametrize("scheme", ["int8:a8", "int8:a8g128", "int8:a8g20", "float8_e4m3fn:af8", "float8_e4m3fn:af8g32"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_activations_get_the_codes_that_the_op_defines_to_the_bit(scheme: str, dtype: str) -> None:
    spec = linear_of(300, 5, scheme=scheme, dtype=dtype)
    assert spec.scheme is not None
    x = (numbers(3, 70, 300) * np.exp2(np.random.default_rng(4).integers(-12, 5, (70, 1)))).astype(DTYPES[dtype])
    x[1] = 0
    x[2, 7], x[3, 9] = np.nan, np.inf
    plan = quantized.plan_of(TARGETS["sm_80"], spec)
    codes, scales = quantized.quantize_rows(device("cuda"), plan, spec, tensor(x))
    wanted, wanted_scales = quantized_rows(x, spec.scheme)
    finite = np.isfinite(wanted_scales).repeat(spec.scheme.activation_group or 300, axis=1)[:, :300]
    np.testing.assert_array_equal(host(scales), wanted_scales)
    np.testing.assert_array_equal(np.where(finite, host(codes).view(np.uint8), 0), np.where(finite, wanted.view(np.uint8), 0))


def test_what_a_kernel_does_not_take_it_says_in_words() -> None:
    assert "one must divide the other" in str(quantized.supports(linear_of(300, 5, scheme="int8:g24:a8g20")))
    assert "may pass 32 bits" in str(quantized.supports(linear_of(70_000, 5, scheme="int8:a8")))
    assert quantized.supports(linear_of(70_000, 5, scheme="int8:g128:a8")) is None
    assert "weights under a scheme" in str(quantized.supports(linear_of(8, 5)))


@pytest.mark.parametrize(("arch", "product"), [("sm_80", "float16"), ("sm_90", "float8_e4m3fn"), ("sm_100", "float8_e4m3fn"),
                                              ("gfx942", "float8_e4m3fnuz"), ("gfx950", "float8_e4m3fn")])
def test_a_target_multiplies_e4m3_as_it_can(arch: str, product: str) -> None:
    both = linear_of(256, 5, scheme="float8_e4m3fn:af8", dtype="bfloat16")
    assert quantized.plan_of(TARGETS[arch], both).product == product
    assert quantized.plan_of(TARGETS[arch], replace(both, out_dtype="float32")).product == "float16"


@pytest.mark.parametrize(("scheme", "plan"), [
    ("int8", (300, 384, 1, 0, 0)), ("int4", (256, 256, 2, 0, 0)), ("int8:g20:a8", (20, 32, 15, 1, 0)),
    ("int8:g128:a8g32", (32, 32, 10, 4, 1)),
    ("int4:a8g64", (64, 64, 5, 0, 1)), ("int8:g512", (300, 384, 1, 0, 0)),
])
def test_inputs_are_cut_where_any_scale_changes(scheme: str, plan: tuple[int, ...]) -> None:
    found = quantized.plan_of(TARGETS["sm_90"], linear_of(300, 5, scheme=scheme))
    assert (found.segment, found.padded, found.segments, found.scale_segments, found.x_segments) == plan


def test_every_e4m3_code_is_the_same_number_in_fnuz_and_widened() -> None:
    bits = np.arange(256, dtype=np.uint8)
    values = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    fnuz = host(as_fnuz(torch.from_numpy(bits))).view(ml_dtypes.float8_e4m3fnuz).astype(np.float32)
    np.testing.assert_array_equal(2 * fnuz, values)
    np.testing.assert_array_equal(widened(bits), values)


def test_every_integer_is_widened_exactly() -> None:
    bits = np.arange(-128, 128).astype(np.int8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        np.testing.assert_array_equal(widened(bits, dtype), bits)


def widened(codes: Any, dtype: Any = torch.float32) -> Any:
    """The codes as floats, by a product with 1 of one input: the kernel's own way through registers."""
    out = torch.empty(len(codes), dtype=dtype)
    device("cuda").launch(widen_lines, (1,), out, torch.from_numpy(codes), COUNT=len(codes), config=Launch({}, {}))
    return out.float().numpy()



@triton.jit
def widen_lines(out, codes, COUNT: tl.constexpr):
    lane = tl.arange(0, COUNT)
    tl.store(out + lane, widen_kernel.widened(tl.load(codes + lane), out.dtype.element_ty))


# Experts.

def moe_of(dtype: str = "float32", activation: str = "silu", embed: int = 33) -> Moe:
    return Moe(experts=Dim(4, "experts"), embed=embed, mlp=Dim(17, "mlp"), top_k=2, activation=activation, dtype=dtype)


def mixed(spec: Moe, tokens: int) -> tuple[Any, Any]:
    """(what the kernel makes, the reference)."""
    random = np.random.default_rng(5)
    x = numbers(2, tokens, spec.embed)
    weight = [numbers(3, 4, 17, spec.embed), numbers(4, 4, 17, spec.embed), numbers(5, 4, spec.embed, 17)]
    chosen = np.stack([random.permutation(4)[:2] for _ in range(tokens)]).astype(np.int32)
    shares = random.dirichlet(np.ones(2), tokens).astype(np.float32)
    x, weight = x.astype(DTYPES[spec.dtype]), [part.astype(DTYPES[spec.dtype]) for part in weight]
    kernel = experts.kernels(device("cuda"))[-1]
    assert kernel.supports(spec) is None and kernel.prepare is not None
    out = kernel.run(spec, tensor(x), torch.from_numpy(chosen), torch.from_numpy(shares), kernel.prepare(spec, weight), None)
    return host(out), spec.reference(x, chosen, shares, weight, None)


@pytest.mark.parametrize("tokens", [1, 5, 80])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_each_token_is_the_sum_of_its_experts(tokens: int, activation: str) -> None:
    out, wanted = mixed(moe_of(activation=activation), tokens)
    np.testing.assert_allclose(out, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("tokens", "count", "top_k"), [(1, 1, 1), (3, 5, 2), (40, 7, 3), (200, 128, 2)], ids=str)
def test_pairs_lie_in_the_same_tiles_whether_they_are_counted_or_sorted(tokens: int, count: int, top_k: int) -> None:
    spec = replace(moe_of(), experts=Dim(count, "experts"), top_k=top_k)
    random = np.random.default_rng(6)
    chosen = torch.from_numpy(np.stack([random.permutation(min(count, 60))[:top_k] for _ in range(tokens)]).astype(np.int32))
    pair, expert = experts.tiled(device("cuda"), spec, chosen, 16)
    sorted_pair, sorted_expert = experts._sorted(spec, chosen, 16, len(expert))
    np.testing.assert_array_equal(pair, sorted_pair)
    used = pair[:, 0] >= 0
    np.testing.assert_array_equal(expert[used], sorted_expert[used])
    assert sorted(pair[pair >= 0].tolist()) == list(range(chosen.numel()))


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["gates", "shares"])
def test_a_token_goes_to_its_best_experts_and_ties_to_the_lowest(sigmoid: bool, renormalize: bool) -> None:
    spec = Router(experts=Dim(60, "experts"), top_k=4, renormalize=renormalize, sigmoid=sigmoid)
    logits = np.round(numbers(9, 37, 60))
    logits[0, 1:] = -np.inf
    chosen, shares = experts.router(device("cuda"), spec, torch.from_numpy(logits))
    wanted, wanted_shares = spec.reference(logits)
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(shares, wanted_shares, atol=1e-6, rtol=1e-5)


def test_no_token_asks_no_expert() -> None:
    spec = moe_of()
    none = torch.empty(0, 2)
    assert experts.moe(device("cuda"), spec, torch.empty(0, 33), none.int(), none, (), None).shape == (0, 33)


# The suite's own cases, and bugs planted in the sources.

CASES = (
    "linear.plain:dtype=bfloat16;m=17;k=130;n=65;outputs=3;bias=yes;out=float32;values=cancel",
    "linear.plain:dtype=float16;m=1;k=257;n=31;outputs=1;bias=no;out=same;values=small",
    "linear.int8:dtype=float16;scheme=int8.g24;activation=a8;m=17;size=130/65;outputs=2-bias-wide;values=special",
    "linear.int4:dtype=bfloat16;scheme=int4.g20.zeros;activation=none;m=5;size=257/140;outputs=3-bias;values=outliers",
    "linear.fp8:dtype=bfloat16;scheme=float8_e4m3fn.g128.r128;activation=af8g128;m=2;size=384/17;outputs=1;values=extreme",
    "experts.router:tokens=7;experts=60;top_k=4;renormalize=no;sigmoid=yes;ties=yes",
    "experts.moe:dtype=bfloat16;tokens=7;experts=5;top_k=2;embed=64;mlp=17;spread=few",
)
"""Small ones of the suite's, of every form."""


@pytest.mark.parametrize("case", CASES)
def test_it_passes_the_suites_cases(case: str) -> None:
    found = find(case).run(Rig(OnlyProducts()))
    assert found.verdict is Verdict.PASS, found.detail
    assert all(name.startswith("triton.") for name in found.kernels)
