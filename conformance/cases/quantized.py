"""linear under a scheme: scales by tensor, channel, group and block, zero points, activations on the fly; codes at their limits."""
from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from ...ops import DTYPES, Dim, Linear, Quantized, Scheme
from ...ops.quantize import CODES, SCALES
from ..case import Family, Params
from ..problem import Array, Given, Problem
from .make import DTYPE, judged, values

SIZES = ("1/3", "31/130", "64/33", "96/5", "130/65", "257/140", "384/17")
"""inputs/outputs"""
TOKENS = ("0", "1", "2", "5", "17", "33", "129")
OUTPUTS = ("1", "2", "3", "1-bias", "3-bias", "1-wide", "2-bias-wide")
"""How many; with a bias each; with a result in float32."""
VALUES = ("normal", "outliers", "zeros", "special", "extreme", "signs")
STEP = {"int8": 2.0**-6, "int4": 0.25, "float8_e4m3fn": 2.0**-6}
"""A scale that makes weights of about 1."""
OUTLIER = 300
TINY = 2.0**-125
"""A number whose inverse times the largest code is infinite: such a group's codes are zeros."""


def _build(params: Params, random: np.random.Generator) -> Problem:
    spec = _spec(params)
    assert spec.scheme is not None
    character = params["values"]
    x = _activations(random, (params.int("m"), spec.input.size), spec, character)
    tensors = [_weight(random, (out.size, spec.input.size), spec.scheme, character) for out in spec.outputs]
    biases = [values(random, (out.size,), spec.dtype) for out in spec.outputs] if spec.bias else []
    weight = (*tensors, *biases)

    def alone(row: int) -> tuple[Problem, slice]:
        return Problem(spec, (x[row : row + 1], Given.WEIGHT, Given.BATCH), weight=weight), slice(row, row + 1)

    return Problem(spec, (x, Given.WEIGHT, Given.BATCH), weight=weight, rows=min(len(x), 3), alone=alone)


def _spec(params: Params) -> Linear:
    inputs, size = params.pair("size")
    count, *with_ = params["outputs"].split("-")
    scheme, activation = Scheme.parse(params["scheme"].replace(".", ":")), params["activation"]
    if activation != "none":
        quantized = Scheme.parse(f"{scheme.weight}:{activation}")
        scheme = replace(scheme, activation=quantized.activation, activation_group=quantized.activation_group)
    outputs = tuple(Dim(max(1, size - 3 * place)) for place in range(int(count)))
    return Linear(input=Dim(inputs), outputs=outputs, dtype=params["dtype"], bias="bias" in with_, scheme=scheme,
                  out_dtype="float32" if "wide" in with_ else None)


def _activations(random: np.random.Generator, shape: tuple[int, int], spec: Linear, character: str) -> Array:
    """outliers: one large value a row. zeros: a row, and a stretch of the others. special: rows of NaN, infinity, nearly nothing.
    extreme: all of one sign, which saturates what is too narrow."""
    x = values(random, shape, spec.dtype)
    tokens, inputs = shape
    if character == "outliers":
        x[np.arange(tokens), random.integers(0, inputs, tokens)] *= DTYPES[spec.dtype].type(OUTLIER)
    elif character == "zeros":
        x[::3] = 0
        x[:, inputs // 3 : inputs // 3 + 40] = x.dtype.type(-0.0)
    elif character == "special":
        _special_rows(random, x, quantized=spec.scheme is not None and spec.scheme.activation is not None)
    elif character == "extreme":
        x = np.abs(x)
    return x


def _special_rows(random: np.random.Generator, x: Array, quantized: bool) -> None:
    """An infinity only where activations are quantized: elsewhere the order of sums decides between infinity and NaN."""
    strange = [np.nan, *([np.inf, -np.inf] if quantized else [])]
    for row, place in enumerate(random.integers(0, x.shape[1], len(x))):
        match row % 4:
            case 0:
                x[row, place] = strange[row // 4 % len(strange)]
            case 2 if quantized:
                x[row, ::2] = x.dtype.type(TINY)
                x[row, 1::2] = 0
            case 2:
                x[row] = x.dtype.type(1e-42)
            case 3:
                x[row] = 0


def _weight(random: np.random.Generator, shape: tuple[int, int], scheme: Scheme, character: str) -> Quantized:
    """extreme: most codes are the smallest or the largest. signs: half of the scales are negative or zero."""
    low, high = CODES[scheme.weight]
    if character == "extreme":
        codes = random.choice([low, low, high, high, 0], size=shape)
    elif scheme.weight.startswith("float"):
        codes = np.clip(random.normal(0, 64, shape), low, high)
    else:
        codes = random.integers(low, high + 1, shape)
    scales = STEP[scheme.weight] * np.exp(random.normal(0, 0.5, scheme.scale_shape(*shape)))
    if character == "signs":
        scales *= random.choice([1, 1, -1, 0], size=scales.shape)
    zeros = random.integers(low, high + 1, scales.shape).astype(np.int8) if scheme.zeros else None
    held = ml_dtypes.float8_e4m3fn if scheme.weight.startswith("float") else np.int8
    return Quantized(codes.astype(held), scales.astype(SCALES[scheme.scales]), zeros)


def _family(weight: str, schemes: tuple[str, ...], activations: tuple[str, ...]) -> Family:
    return Family(f"linear.{weight}", 1, {
        "dtype": DTYPE, "scheme": schemes, "activation": ("none", *activations), "m": TOKENS, "size": SIZES,
        "outputs": OUTPUTS, "values": VALUES,
    }, judged(_build))


FAMILIES = [
    _family("int8", ("int8", "int8.rall", "int8.g32.zeros", "int8.g64.float16", "int8.g128.bfloat16", "int8.g24", "int8.g128.r128"),
            ("a8", "a8g128", "a8g32", "a8g20", "af8")),
    _family("int4", ("int4", "int4.g32.float16", "int4.g64.zeros.bfloat16", "int4.g128", "int4.g128.zeros.float16", "int4.g20.zeros",
                     "int4.g64.r32"),
            ("a8", "a8g32", "a8g128", "af8g64")),
    _family("fp8", ("float8_e4m3fn", "float8_e4m3fn.rall", "float8_e4m3fn.g128.r128", "float8_e4m3fn.g128", "float8_e4m3fn.g32.bfloat16",
                    "float8_e4m3fn.g20.float16", "float8_e4m3fn.g64.r16"),
            ("af8", "af8g128", "af8g20", "a8")),
]
"""A scheme's colons are dots in an address."""
