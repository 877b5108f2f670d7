"""The quantized linear of the cpu platform against `Linear.reference`, on every path that this processor has."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from inferplane.ops import DTYPES, Dim, GatedActivation, GatedLinear, Linear, Quantized, Scheme, Uncoded
from inferplane.ops import quantize as quantizing
from inferplane.ops.quantize import quantize
from inferplane.ops.tolerance import exact, within
from inferplane.platforms.cpu.kernels import native_kernels
from inferplane.platforms.cpu.quantized import SCHEMES, quantized_kernels

native = pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")

PATHS = native.features()["paths"]
COMPUTED = ("float32", "bfloat16", "float16")
GROUPED = (
    *SCHEMES, "int8:a8g4", "int8:g64:zeros:float16", "int8:zeros:a8", "int4:g4:a8g64", "int4:g64:bfloat16:a8g64",
    "int4:g128:float16:a8g128", "int4:g128:a8g48", "int4:g32:a8", "int4:g64:zeros:bfloat16:a8g32", "int4:g32:zeros:float16",
    "int4:bfloat16",
)
SHAPES = [(1, 1, 1), (1, 67, 130), (2, 131, 64), (5, 64, 65), (13, 1030, 70), (40, 1056, 130), (261, 67, 33)]


@pytest.fixture(params=PATHS)
def path(request: Any) -> Any:
    native.select(request.param)
    yield request.param
    native.select("auto")


@pytest.fixture(params=COMPUTED)
def dtype(request: Any) -> Any:
    return request.param


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(text: str, inputs: int, *outputs: int, dtype: str = "bfloat16", **fields: Any) -> Linear:
    return Linear(input=Dim(inputs), outputs=tuple(map(Dim, outputs)), dtype=dtype, scheme=Scheme.parse(text), **fields)


def weights(spec: Linear, seed: int = 7) -> list[Any]:
    assert spec.scheme is not None
    parts: list[Any] = [quantize(numbers(seed + i, dim.size, spec.input.size), spec.scheme) for i, dim in enumerate(spec.outputs)]
    biases = [numbers(seed + 50 + i, dim.size).astype(DTYPES[spec.dtype]) for i, dim in enumerate(spec.outputs)] if spec.bias else []
    return parts + biases


def rows(spec: Linear, tokens: int) -> Any:
    return numbers(1, tokens, spec.input.size).astype(DTYPES[spec.dtype])


def run(spec: Linear, x: Any, parts: list[Any]) -> Any:
    kernel = quantized_kernels()[0]
    assert kernel.supports(spec) is None
    return kernel.run(spec, x, kernel.prepare(spec, parts), None)


def assert_close(spec: Linear, x: Any, parts: list[Any]) -> None:
    """Codes are the reference's own, so the sums alone are off: tighter than the op's tolerance, which allows flipped codes."""
    made = run(spec, x, parts), spec.reference(x, parts, None), spec.magnitude(x, parts, None)
    for one, wanted, size in zip(*(each if isinstance(each, tuple) else (each,) for each in made), strict=True):
        assert within(one, wanted, depth=spec.input.size + 4, magnitude=size) is None


@pytest.mark.parametrize("size", [(5, 96, 100), (1, 64, 64), (300, 160, 130), (0, 32, 8)], ids=str)
@pytest.mark.parametrize("text", ["int8:a8", "int8:g32:float16:a8g32", "int4:g32:float16:a8g32", "int4:g32:zeros"])
def test_a_gated_linear_is_the_activation_of_its_unrounded_sums(path: str, text: str, size: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = size
    plain = linear(text, inputs, outputs, outputs, bias=True)
    spec = GatedLinear(linear=plain, activation=GatedActivation(kind="silu", dtype="bfloat16"))
    gated, [activation] = quantized_kernels()[1], [kernel for kernel in native_kernels() if kernel.op == "gated_activation"]
    assert gated.supports(spec) is None
    x, parts = rows(plain, tokens), weights(plain)
    sums = run(replace(plain, out_dtype="float32"), x, parts)
    wanted = activation.run(GatedActivation(kind="silu", dtype="float32"), *sums).astype(DTYPES["bfloat16"])
    assert exact(gated.run(spec, x, gated.prepare(spec, parts), None), wanted) is None


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("text", GROUPED)
def test_it_is_the_product_of_what_the_codes_stand_for(path: str, text: str, shape: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = shape
    spec = linear(text, inputs, outputs)
    assert_close(spec, rows(spec, tokens), weights(spec))


@pytest.mark.parametrize("text", ["int8:g128:float16:a8g128", "int4:g32:float16:a8g32", "int8:g64:zeros:float16", "int4:g32:bfloat16"])
def test_every_dtype_is_multiplied(path: str, dtype: str, text: str) -> None:
    spec = linear(text, 333, 77, dtype=dtype)
    assert_close(spec, rows(spec, 7), weights(spec))


@pytest.mark.parametrize("text", ["int8:a8", "int4:g32:float16:a8g32", "int4:g32:zeros:float16", "int8"])
@pytest.mark.parametrize("widths", [(64, 64, 64), (96, 16, 16), (5, 1, 130), (63, 2)], ids=str)
def test_fused_outputs_have_their_own_columns_and_biases(path: str, text: str, widths: tuple[int, ...]) -> None:
    spec = linear(text, 131, *widths, bias=True)
    assert_close(spec, rows(spec, 11), weights(spec))


@pytest.mark.parametrize("text", ["int8:a8", "int4:g32:float16:a8g32", "int4:g32:float16"])
def test_float32_out_keeps_the_unrounded_sums(path: str, text: str) -> None:
    spec = linear(text, 333, 77, out_dtype="float32")
    x, parts = rows(spec, 9), weights(spec)
    assert run(spec, x, parts).dtype == np.float32
    assert_close(spec, x, parts)


@pytest.mark.parametrize("text", ["int8:a8", "int8:a8g128", "int4:g32:float16:a8g32", "int8", "int4:g32:float16"])
def test_the_extreme_codes_do_not_saturate(path: str, text: str) -> None:
    spec = linear(text, 256, 64)
    assert spec.scheme is not None
    low = -128 if spec.scheme.weight == "int8" else -8
    codes = np.where(np.arange(64)[:, None] % 2, low, -low - 1).astype(np.int8) * np.ones((1, 256), np.int8)
    scales = np.ones(spec.scheme.scale_shape(64, 256), np.float16 if spec.scheme.scales == "float16" else np.float32)
    x = np.ones((9, 256), DTYPES["bfloat16"])
    x[1::2] = -1
    assert_close(spec, x, [Quantized(codes, scales)])


@pytest.mark.parametrize(
    "text", ["int8:a8", "int8:g128:float16:a8g128", "int4:g32:float16:a8g32", "int4:g64:zeros:a8g32", "int8", "int4:g32:float16"]
)
@pytest.mark.parametrize("inputs", [1030, 1216], ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(path: str, dtype: str, inputs: int, text: str) -> None:
    spec = linear(text, inputs, 100, dtype=dtype)
    kernel = quantized_kernels()[0]
    x, weight = rows(spec, 70), kernel.prepare(spec, weights(spec))
    alone = np.concatenate([kernel.run(spec, x[i : i + 1], weight, None) for i in range(len(x))])
    for tokens in (2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 17, 31, 48, 65, 70):
        batch = kernel.run(spec, x[:tokens], weight, None)
        np.testing.assert_array_equal(batch.view(np.uint8), alone[:tokens].view(np.uint8), err_msg=f"{tokens} rows")


@pytest.mark.parametrize("tokens", [6, 7, 40], ids=str)
def test_high_nibbles_overflow_alike_in_few_rows_and_in_many(path: str, tokens: int) -> None:
    spec = linear("int4:a8", 32, 64)
    x = np.zeros((tokens, 32), DTYPES["bfloat16"])
    x[:, 0] = 1e37
    parts = [Quantized(np.full((64, 32), 7, np.int8), np.ones((64, 1), np.float32))]
    np.testing.assert_array_equal(run(spec, x, parts), run(spec, x[:1], parts).repeat(tokens, 0))


@pytest.mark.parametrize("text", ["int8:a8g128", "int4:g32:float16:a8g32", "int4:g32:float16"])
@pytest.mark.parametrize("inputs", [70, 128], ids=str)
def test_a_row_has_the_same_bits_beyond_a_slab(inputs: int, text: str) -> None:
    spec = linear(text, inputs, 70)
    kernel = quantized_kernels()[0]
    x, weight = rows(spec, 1100), kernel.prepare(spec, weights(spec))
    batch = kernel.run(spec, x, weight, None)
    for i in (0, 257, 258, 511, 512, 1023, 1024, 1031, 1032, 1099):
        np.testing.assert_array_equal(kernel.run(spec, x[i : i + 1], weight, None), batch[i : i + 1])


@pytest.mark.parametrize("threads", [1, 2], ids=lambda n: f"{n}-threads")
@pytest.mark.parametrize("text", ["int8:a8g128", "int4:g32:float16:a8g32", "int4:g32:float16"])
def test_threads_do_not_change_a_bit(text: str, threads: int) -> None:
    spec = linear(text, 500, 300)
    x, parts = rows(spec, 37), weights(spec)
    native.set_threads(5)
    expected = run(spec, x, parts)
    native.set_threads(threads)
    np.testing.assert_array_equal(run(spec, x, parts).view(np.uint8), expected.view(np.uint8))
    native.set_threads(0)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("text", ["int8:a8", "int8:a8g128", "int4:g32:zeros:float16:a8g32", "int8", "int4:g32:float16"])
def test_what_is_not_finite_stays_in_its_row(path: str, text: str, strange: float) -> None:
    spec = linear(text, 300, 70)
    x, parts = rows(spec, 13), weights(spec)
    clean = run(spec, x, parts)
    x[4, 150] = strange
    found = run(spec, x, parts)
    assert not np.isfinite(found[4].astype(np.float32)).any()
    np.testing.assert_array_equal(np.delete(found, 4, 0).view(np.uint8), np.delete(clean, 4, 0).view(np.uint8))
    if spec.scheme is not None and spec.scheme.activation:
        assert np.isnan(found[4].astype(np.float32)).all()


@pytest.mark.parametrize("text", ["int8:a8", "int4:g32:float16:a8g32"])
def test_rows_of_zeros_and_of_tiny_numbers_are_zeros(path: str, text: str) -> None:
    spec = linear(text, 64, 64, dtype="float32")
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-40
    np.testing.assert_array_equal(run(spec, x, weights(spec)), 0)


def test_no_rows_give_no_rows(path: str) -> None:
    spec = linear("int8:a8", 64, 10)
    assert run(spec, rows(spec, 0), weights(spec)).shape == (0, 10)


@pytest.mark.parametrize("text", ["int8:a8g128", "int4:g64:zeros:bfloat16"])
def test_packing_part_by_part_gives_the_bits_of_packing_at_once(text: str) -> None:
    spec, fused = linear(text, 150, 137), linear(text, 150, 40, 7, 90)
    parts = weights(fused)
    whole = Quantized(*(None if pieces[0] is None else np.concatenate(pieces) for pieces in zip(*parts, strict=True)))
    prepare = quantized_kernels()[0].prepare
    np.testing.assert_array_equal(prepare(spec, [whole]).panels, prepare(fused, parts).panels)


@pytest.mark.parametrize("text", ["int8:g64:float16:a8g64", "int4:g32:float16:a8g32", "int4:g32:zeros"])
def test_codes_that_are_made_slice_by_slice_are_packed_to_the_same_bits(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "UNCODED_VALUES", 64 * 96)
    spec = linear(text, 96, 200, 70)
    assert spec.scheme is not None
    floats, taken = [numbers(3, 200, 96), numbers(4, 70, 96)], []
    prepare = quantized_kernels()[0].prepare
    whole = prepare(spec, [quantize(weight, spec.scheme) for weight in floats])
    sliced = prepare(spec, [Uncoded(weight, spec.scheme, lambda: taken.append(1)) for weight in floats])
    np.testing.assert_array_equal(sliced.panels, whole.panels)
    assert len(taken) == 4 + 2


@pytest.mark.parametrize("text", ["float8_e4m3fn", "int8:af8", "int8:r2", "int4:g6", "int8:a8g30", "int8:rall"])
def test_a_scheme_it_does_not_take_is_refused_with_a_reason(text: str) -> None:
    assert "not" in (quantized_kernels()[0].supports(linear(text, 150, 10)) or "")


def test_a_group_as_long_as_the_inputs_may_be_odd() -> None:
    spec = linear("int8:g151:a8g155", 151, 10)
    assert_close(spec, rows(spec, 3), weights(spec))


@pytest.mark.parametrize("wrong", ["rows", "bits", "group", "scales", "packed"])
def test_a_wrong_argument_is_named(wrong: str) -> None:
    layout: dict[str, Any] = dict(inputs=64, bits=8, group=32, scales="float32", zeros=False)
    layout |= {"bits": dict(bits=5), "group": dict(group=6), "scales": dict(scales="float64")}.get(wrong, {})
    panels = native.allocate(64 * 64 if wrong == "packed" else 64 * 64 + 2 * 256)
    codes = np.zeros((65 if wrong == "rows" else 64, 64), np.uint8)
    with pytest.raises(ValueError, match=wrong):
        native.pack_quantized(panels, 64, 0, codes, np.zeros((len(codes), 2), np.float32), None, *layout.values())


def test_scales_keep_their_dtype_in_memory() -> None:
    specs = (linear(f"int4:g32:{scales}", 64, 64) for scales in ("float16", "float32"))
    narrow, wide = (quantized_kernels()[0].prepare(spec, weights(spec)).panels.nbytes for spec in specs)
    assert wide - narrow == 2 * 64 * 2 and narrow == 64 * 64 // 2 + 2 * 64 * 2
