"""Triton's products compiled for every chip that they are written for: nothing spills, every tile fits."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inferplane.ops import Dim, Linear, Moe, Router, Scheme
from inferplane.ops.quantize import quantize

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from inferplane.platforms.families.triton import experts, linear, quantized  # noqa: E402
from inferplane.platforms.families.triton.compiled import Compiler  # noqa: E402
from inferplane.platforms.families.triton.target import TARGETS  # noqa: E402

SIZE = 1024
ROWS = {"few rows": 8, "a chunk": 300}


def empty(*shape: int, dtype: str = "bfloat16") -> Any:
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")


def linear_of(scheme: str | None = None, inputs: int = SIZE, **given: Any) -> Linear:
    parsed = None if scheme is None else Scheme.parse(scheme)
    return Linear(input=Dim(inputs), outputs=(Dim(SIZE),), dtype="bfloat16", scheme=parsed, **given)


def host_weight(spec: Linear) -> Any:
    assert spec.scheme is not None
    return quantize(np.ones((SIZE, spec.input.size), np.float32), spec.scheme)


def launched(arch: str, spec: Any, tokens: int) -> list[Any]:
    """What was compiled for one call of an op, on a chip that is not there."""
    compiler = Compiler(TARGETS[arch])
    device = compiler.device
    if isinstance(spec, Moe):
        weight = (empty(spec.experts.size, 2 * spec.mlp.size, spec.embed), empty(spec.experts.size, spec.embed, spec.mlp.size))
        asked = Router(experts=spec.experts, top_k=spec.top_k)
        chosen, shares = experts.router(device, asked, empty(tokens, spec.experts.size, dtype="float32"))
        experts.moe(device, spec, empty(tokens, spec.embed), chosen, shares, weight, None)
    elif spec.scheme is None:
        linear.linear(device, spec, empty(tokens, spec.input.size), (empty(SIZE, spec.input.size), empty(SIZE)), None)
    else:
        quantized.linear(device, spec, empty(tokens, spec.input.size), quantized.prepare(device, spec, [host_weight(spec)]), None)
    return compiler.made


SPECS = {
    "floats": linear_of(), "odd floats": linear_of(inputs=333, out_dtype="float32", bias=True),
    "int8": linear_of("int8"), "int8:a8": linear_of("int8:a8"),
    "int4:g128": linear_of("int4:g128:zeros"), "int4:g32:a8g32": linear_of("int4:g32:a8g32"),
    "fp8": linear_of("float8_e4m3fn:af8"), "fp8 blocks": linear_of("float8_e4m3fn:g128:r128:af8g128"),
    "experts": Moe(experts=Dim(60), embed=SIZE, mlp=Dim(512), top_k=4, activation="silu", dtype="bfloat16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("arch", TARGETS)
def test_it_compiles_within_the_chips_registers_and_shared_memory(arch: str, spec: Any, tokens: int) -> None:
    made = launched(arch, spec, tokens)
    assert made
    assert [f"{one.kernel}: {one.reason or one}" for one in made if not one.fits] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_a_single_row_streams_weights_through_registers_alone(arch: str) -> None:
    [made] = launched(arch, linear_of(), 1)
    assert made.kernel == "linear_of_one_row" and made.fits
    assert made.shared_bytes <= 8192, "sums of programs' lanes; a tile of the weight has 16 KiB"


def test_an_e4m3_product_reaches_the_matrix_unit_as_the_chip_has_it() -> None:
    [_, product, *_] = launched("sm_90", linear_of("float8_e4m3fn:af8"), 300)
    assert "fp8e4nv" in product.arguments
