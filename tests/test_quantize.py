"""Schemes as text, and codes with their scales in both directions."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from inferplane.core.quantization import PRESETS, asked_scheme
from inferplane.errors import ConfigError, SpecError
from inferplane.ops import Dim, Linear, Quantized, Scheme
from inferplane.ops.quantize import dequantized, quantize, quantized_rows, requantized, undecided
from inferplane.ops.tolerance import within

TEXTS = (
    "int8", "int8:a8", "int8:a8g128", "int4:g32:float16:a8g32", "int4:g64:zeros:bfloat16", "float8_e4m3fn:g128:r128:af8g128",
    "float8_e4m3fn:rall",
)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(37, 150)).astype(np.float32)


@pytest.mark.parametrize("text", TEXTS)
def test_a_scheme_reads_its_own_text(text: str) -> None:
    assert str(Scheme.parse(text)) == text


@pytest.mark.parametrize("text", ["int3", "int8:g0", "int4:what", "float8_e4m3fn:zeros", "", "int8:r0"])
def test_a_text_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Scheme.parse(text)
    with pytest.raises(ConfigError, match="int8"):
        asked_scheme(text)


@pytest.mark.parametrize("text", TEXTS)
def test_each_value_comes_back_within_its_step(text: str, weight: np.ndarray) -> None:
    scheme = Scheme.parse(text)
    made = quantize(weight, scheme)
    assert made.codes.shape == weight.shape and made.scales.shape == scheme.scale_shape(*weight.shape)
    assert (made.zeros is not None) == scheme.zeros
    error = np.abs(dequantized(made, scheme) - weight)
    rows, columns = np.arange(37) // (scheme.rows or 37), np.arange(150) // (scheme.group or 150)
    step = np.abs(made.scales.astype(np.float64))[rows][:, columns]
    most = 0.5 if scheme.zeros else 1.0 if scheme.weight == "int8" else 1.3 if scheme.weight == "int4" else 16
    assert (error <= step * most * 1.02 + 1e-6).all()
    assert np.sqrt((error**2).mean()) < np.sqrt((step**2).mean()) * most


def test_codes_and_scales_are_those_of_the_values_where_these_are_on_the_grid() -> None:
    codes = np.array([[-8, 7, 3, -1], [4, -8, 0, 2]], np.int8)
    scheme = Scheme("int4", scales="float16")
    made = quantize(codes * np.array([[0.5], [2.0]], np.float32), scheme)
    assert made.codes.tolist() == codes.tolist() and made.scales.ravel().tolist() == [0.5, 2.0]


def test_a_group_of_zeros_is_zeros() -> None:
    for text in TEXTS:
        scheme = Scheme.parse(text)
        assert not dequantized(quantize(np.zeros((3, 10), np.float32), scheme), scheme).any()


def test_signed_fours_lose_less_than_q4_0_at_the_same_size(weight: np.ndarray) -> None:
    scheme = Scheme("int4", group=30, scales="float16")
    tiles = weight.reshape(37, -1, 30)
    scale = np.take_along_axis(tiles, np.abs(tiles).argmax(-1)[..., None], -1) / -8
    peer = (np.clip(np.round(tiles / scale), -8, 7) * scale).reshape(weight.shape)
    ours = dequantized(quantize(weight, scheme), scheme)
    assert ((ours - weight) ** 2).mean() < ((peer - weight) ** 2).mean()


def test_activations_are_rounded_to_the_nearest_code_of_their_group() -> None:
    x = np.array([[1.0, -127.0, 63.5, 0.0, 254.0, 1.0], [0, 0, 0, np.inf, 1, 2], [0, 0, 0, 5, -5, 0]], np.float32)
    codes, scales = quantized_rows(x, Scheme.parse("int8:a8g3"))
    assert scales[0].tolist() == [1.0, 2.0] and codes[0].tolist() == [1, -127, 64, 0, 127, 0]
    assert scales[1, 0] == 0 and np.isnan(scales[1, 1]) and np.isnan(requantized(x, Scheme.parse("int8:a8g3"))[1, 3:]).all()
    assert scales[2, 0] == 0 and codes[2].tolist() == [0, 0, 0, 127, -127, 0]


def test_a_quantized_linear_is_the_product_of_what_the_codes_stand_for(weight: np.ndarray) -> None:
    x = np.random.default_rng(2).normal(size=(5, 150)).astype(ml_dtypes.bfloat16)
    scheme = PRESETS["int8"]
    spec = Linear(input=Dim(150), outputs=(Dim(37),), dtype="bfloat16", scheme=scheme)
    made = spec.reference(x, [quantize(weight, scheme)], None)
    assert np.allclose(made, requantized(x, scheme) @ dequantized(quantize(weight, scheme), scheme).T)
    assert np.abs(made - x.astype(np.float64) @ weight.T.astype(np.float64)).max() < 0.6
    assert (spec.magnitude(x, [quantize(weight, scheme)], None) >= np.abs(made) - 1e-9).all()
    assert isinstance(quantize(weight, scheme), Quantized)


@pytest.mark.parametrize("text", ["int8:a8", "int8:a8g3", "int8:af8"])
def test_only_what_lies_at_a_tie_is_undecided_and_by_one_step(text: str) -> None:
    scheme = Scheme.parse(text)
    ties = np.array([[448.0, 17.0, 16.0]] if "af8" in text else [[127.0, 2.5, 2.0]], np.float32)
    assert undecided(ties, scheme).tolist() == [[0.0, 2.0 if "af8" in text else 1.0, 0.0]]
    x = np.random.default_rng(3).normal(size=(40, 33)).astype(np.float32)
    assert (undecided(x, scheme) > 0).mean() < 1e-2
    assert undecided(np.array([[0, np.nan, 1]], np.float32), scheme).shape == (1, 3)


def test_a_code_at_a_tie_may_be_its_neighbour_and_no_other_code_may() -> None:
    scheme = Scheme("int8", activation="int8")
    spec = Linear(input=Dim(3), outputs=(Dim(1),), dtype="float32", scheme=scheme)
    x, weight = np.array([[127.0, 2.5, 2.0]], np.float32), [Quantized(np.array([[1, 10, 10]], np.int8), np.ones((1, 1), np.float32))]
    bound = {"depth": spec.tolerance.depth, "magnitude": spec.magnitude(x, weight, None)}
    right = spec.reference(x, weight, None)
    assert right.tolist() == [[127 + 20 + 20]], "2.5 goes to the even code"
    assert within(np.float32([[127 + 30 + 20]]), right, **bound) is None
    assert within(np.float32([[127 + 30 + 30]]), right, **bound) is not None
    assert within(np.float32([[127 + 20 + 9]]), right, **bound) is not None


def test_a_result_just_below_a_power_of_two_may_be_rounded_above_it() -> None:
    """There the dtype is coarser: 8 - 0.01 with a last step of 0.03, then rounded among 8, 8.0625."""
    expected, magnitude = np.array([7.99]), np.array([0.05])
    assert within(np.array([8.0625], ml_dtypes.bfloat16), expected, depth=2**24, magnitude=magnitude) is None
    assert within(np.array([8.125], ml_dtypes.bfloat16), expected, depth=2**24, magnitude=magnitude) is not None
