"""Quantized products and experts in Pallas, under its TPU interpreter: against the references, and on the suite's cases."""
from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from inferplane.conformance import naive
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.rig import Rig
from inferplane.ops import DTYPES, Dim, Linear, Moe, Scheme
from inferplane.ops.quantize import quantize
from inferplane.ops.tolerance import naive_relative, within
from inferplane.platforms.contract import CONTRACT, Availability, Capabilities, Options
from inferplane.platforms.families.jax import JaxPlatform
from inferplane.platforms.families.supports import SCHEMES
from inferplane.platforms.tpu import QUICK_COMPILE

jax = pytest.importorskip("jax")

from inferplane.platforms.families.pallas import experts, quantized  # noqa: E402
from inferplane.platforms.families.pallas.calls import Calls  # noqa: E402
from inferplane.platforms.families.pallas.kernels import pallas_kernels  # noqa: E402

CALLS = Calls(interpret=True)
jitted = partial(jax.jit, compiler_options=QUICK_COMPILE)


class OnlyPallas(JaxPlatform):
    """JAX on the CPU with no other kernel to hide behind."""

    name, contract = "only-pallas", CONTRACT
    capabilities = Capabilities(dtypes=("bfloat16", "float32"), schemes=SCHEMES)
    quick_compile = QUICK_COMPILE

    @classmethod
    def probe(cls, options: Options) -> Availability:
        return Availability(True)

    def find_device(self, options: Options) -> Any:
        return jax.devices("cpu")[0]

    def kernels(self) -> Any:
        return pallas_kernels(interpret=True)


def linear_of(scheme: str, inputs: int, *outputs: int, dtype: str = "bfloat16", **given: Any) -> Linear:
    return Linear(input=Dim(inputs), outputs=tuple(map(Dim, outputs)), dtype=dtype, scheme=Scheme.parse(scheme), **given)


SCHEMES_TRIED = {
    "int8": linear_of("int8", 130, 31), "int8 by token": linear_of("int8:a8", 2100, 40, 24, bias=True),
    "int4": linear_of("int4:g128:float16", 384, 30), "int4 with zeros": linear_of("int4:g32:zeros:a8g64", 130, 17, 14, out_dtype="float32"),
    "int4 whole": linear_of("int4:rall:a8", 65, 130, dtype="float32"), "fp8": linear_of("float8_e4m3fn:g128:r128:af8g128", 300, 140),
    "mixed": linear_of("float8_e4m3fn:a8g20", 65, 33, dtype="float32"), "int8 with zeros": linear_of("int8:g24:zeros", 100, 33, bias=True),
}


@pytest.mark.parametrize("spec", SCHEMES_TRIED.values(), ids=SCHEMES_TRIED)
def test_a_product_of_codes_is_that_of_what_they_stand_for(spec: Linear) -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(37, spec.input.size)).astype(DTYPES[spec.dtype])
    assert spec.scheme is not None
    parts: list[Any] = [quantize(random.normal(size=(dim.size, spec.input.size)).astype(np.float32), spec.scheme) for dim in spec.outputs]
    parts += [random.normal(size=dim.size).astype(np.float32) for dim in spec.outputs] if spec.bias else []
    assert quantized.supports(spec) is None
    made = jitted(lambda x, weight: quantized.linear(CALLS, spec, x, weight, None))(x, quantized.prepare(None, spec, parts))
    wanted, sizes = spec.reference(x, parts, None), spec.magnitude(x, parts, None)
    for one, right, size in zip(*(value if isinstance(value, tuple) else (value,) for value in (made, wanted, sizes)), strict=True):
        assert within(np.asarray(one), right, depth=spec.tolerance.depth, magnitude=size) is None


def test_four_bits_lie_two_in_a_byte_and_long_groups_in_whole_tiles() -> None:
    spec = linear_of("int4:g128", 512, 64)
    assert spec.scheme is not None
    packed = quantized.prepare(None, spec, [quantize(np.ones((64, 512), np.float32), spec.scheme)])
    assert packed.codes.shape == (2, 128, 64)
    assert packed.scales.shape == (4, 1, 64)


def test_what_the_product_cannot_do_is_refused_in_words() -> None:
    assert "one must divide the other" in str(quantized.supports(linear_of("int4:g20:a8g128", 384, 4)))
    assert "may pass 32 bits" in str(quantized.supports(linear_of("int8:a8", 1 << 18, 4)))
    assert quantized.supports(linear_of("int8", 64, 4, dtype="float16")) == "dtype float16; the kernel computes in float32, bfloat16"
    assert "for weights under a scheme" in str(quantized.supports(Linear(input=Dim(4), outputs=(Dim(4),), dtype="float32")))


def moe_of(**given: Any) -> Moe:
    plain = dict(experts=Dim(5), embed=33, mlp=Dim(40), top_k=2, activation="silu", dtype="float32")
    return Moe(**{**plain, **given})


EXPERTS = {"float32": moe_of(), "bfloat16": moe_of(dtype="bfloat16", top_k=1),
           "limited": moe_of(dtype="bfloat16", bias=True, limit=2.0, alpha=1.702), "gelu": moe_of(activation="gelu_tanh")}


@pytest.mark.parametrize("tokens", [1, 70], ids=["one", "many"])
@pytest.mark.parametrize("spec", EXPERTS.values(), ids=EXPERTS)
def test_each_token_gets_the_answers_of_its_own_experts(spec: Moe, tokens: int) -> None:
    random = np.random.default_rng(6)
    dtype, (count, mlp) = DTYPES[spec.dtype], (spec.experts.size, spec.mlp.size)
    x = random.normal(size=(tokens, spec.embed)).astype(dtype)
    chosen = np.stack([random.permutation([0, 1, 4])[: spec.top_k] for _ in range(tokens)]).astype(np.int32)
    weights = random.dirichlet(np.ones(spec.top_k), tokens).astype(np.float32)
    shapes = [(count, mlp, spec.embed)] * 2 + [(count, spec.embed, mlp)]
    shapes += [shape[:2] for shape in shapes] if spec.bias else []
    parts = [random.normal(size=shape).astype(dtype) for shape in shapes]
    assert experts.supports(spec) is None
    made = jitted(lambda *given: experts.moe(CALLS, spec, *given, None))(x, chosen, weights, experts.prepare(None, spec, parts))
    inputs = (x, chosen, weights, parts, None)
    usual, wanted = naive.moe(spec)(*inputs), spec.reference(*inputs)
    assert naive_relative(np.asarray(made), usual, wanted, halves=2, magnitude=spec.magnitude(*inputs)) is None


def test_experts_are_refused_whose_activation_or_size_a_tpu_cannot_take() -> None:
    assert experts.supports(moe_of(activation="gelu")) == "activation gelu; Mosaic, which compiles the kernel, has no erfc"
    assert "take 64 MiB of vector memory" in str(experts.supports(moe_of(mlp=Dim(65536))))
    assert "dtype float16" in str(experts.supports(moe_of(dtype="float16")))


CASES = {
    "linear.int8:dtype=bfloat16;scheme=int8;activation=a8;m=17;size=257/140;outputs=3-bias;values=special": "pallas.quantized_linear",
    "linear.int4:dtype=float32;scheme=int4.g64.zeros.bfloat16;activation=a8g32;m=5;size=130/65;outputs=2;values=extreme":
        "pallas.quantized_linear",
    "linear.fp8:dtype=bfloat16;scheme=float8_e4m3fn.g64.r16;activation=af8;m=33;size=96/5;outputs=1-wide;values=outliers":
        "pallas.quantized_linear",
    "experts.moe:dtype=bfloat16;tokens=33;experts=8;top_k=2;embed=33;mlp=17;spread=few": "pallas.moe",
}
"""Small ones of the suite's, and the kernel that they are for."""


@pytest.mark.parametrize(("case", "kernel"), CASES.items(), ids=[case.partition(":")[0] for case in CASES])
def test_they_pass_the_suites_cases(case: str, kernel: str) -> None:
    found = find(case).run(Rig(OnlyPallas(Options())))
    assert found.verdict is Verdict.PASS, found.detail
    assert found.kernels == (kernel,)
