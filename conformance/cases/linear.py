"""linear and gated_linear: odd sizes, several outputs, biases, a wide result; values that cancel. head_linear: a product for each head."""
from __future__ import annotations

import numpy as np

from ...ops import DTYPES, Dim, GatedActivation, GatedLinear, HeadLinear, Linear, Spec
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values

SIZES = ("1", "2", "7", "16", "31", "33", "64", "65", "96", "130", "257")


def _plain(params: Params, random: np.random.Generator) -> Problem:
    outputs = tuple(Dim(max(1, params.int("n") - 3 * place)) for place in range(params.int("outputs")))
    spec = Linear(input=Dim(params.int("k")), outputs=outputs, dtype=params["dtype"], bias=params.flag("bias"),
                  out_dtype=None if params["out"] == "same" else params["out"])
    return _problem(spec, spec, params, random)


def _gated(params: Params, random: np.random.Generator) -> Problem:
    linear = Linear(input=Dim(params.int("k")), outputs=(Dim(params.int("n")),) * 2, dtype=params["dtype"], bias=params.flag("bias"))
    spec = GatedLinear(linear=linear, activation=GatedActivation(kind=params["kind"], dtype=params["dtype"]))
    return _problem(spec, linear, params, random)


def _problem(spec: Spec, linear: Linear, params: Params, random: np.random.Generator) -> Problem:
    dtype, inputs, outputs = linear.dtype, linear.input.size, linear.outputs
    x = values(random, (params.int("m"), inputs), dtype, params["values"])
    weight = [values(random, (out.size, inputs), dtype) for out in outputs]
    if params["values"] == "cancel" and inputs > 1:
        for part in weight:
            part[:, inputs // 2 :] = -part[:, : inputs - inputs // 2]
        x[:, inputs // 2 :] = x[:, : inputs - inputs // 2]
    biases = [values(random, (out.size,), dtype) for out in outputs] if linear.bias else []

    def alone(row: int) -> tuple[Problem, slice]:
        return Problem(spec, (x[row : row + 1], Given.WEIGHT, Given.BATCH), weight=tuple(weight + biases)), slice(row, row + 1)

    return Problem(
        spec, (x, Given.WEIGHT, Given.BATCH), weight=tuple(array.astype(DTYPES[dtype]) for array in weight + biases),
        rows=min(len(x), 3), alone=alone,
    )


def _heads(params: Params, random: np.random.Generator) -> Problem:
    dtype, heads, inputs, outputs = params["dtype"], params.int("heads"), params.int("k"), params.int("n")
    spec = HeadLinear(heads=Dim(heads, "heads"), input=inputs, output=outputs, dtype=dtype)
    x = values(random, (params.int("m"), heads, inputs), dtype, params["values"])
    weight = values(random, (heads, outputs, inputs), dtype)

    def alone(row: int) -> tuple[Problem, slice]:
        return Problem(spec, (x[row : row + 1], Given.WEIGHT), weight=(weight,)), slice(row, row + 1)

    return Problem(spec, (x, Given.WEIGHT), weight=(weight,), rows=min(len(x), 3), alone=alone)


ROWS = ("0", "1", "2", "3", "5", "8", "17", "33", "64", "129")

FAMILIES = [
    Family("linear.plain", 1, {
        "dtype": DTYPE, "m": ROWS, "k": SIZES, "n": SIZES, "outputs": ("1", "2", "3"), "bias": YES_NO, "out": ("same", "float32"),
        "values": ("normal", "small", "large", "cancel"),
    }, judged(_plain)),
    Family("linear.gated", 1, {
        "dtype": DTYPE, "m": ROWS, "k": SIZES, "n": SIZES, "kind": ("silu", "gelu", "gelu_tanh", "relu"), "bias": YES_NO,
        "values": ("normal", "small", "cancel"),
    }, judged(_gated)),
    Family("linear.heads", 1, {
        "dtype": DTYPE, "m": ("0", "1", "2", "7", "33", "64"), "heads": ("1", "2", "3", "8", "16"),
        "k": ("1", "7", "24", "64", "130", "512"), "n": ("1", "10", "24", "64", "65", "130"), "values": ("normal", "small", "large"),
    }, judged(_heads)),
]
