"""linear: odd sizes, several outputs, biases, a wide result; values that cancel."""
from __future__ import annotations

import numpy as np

from ...ops import DTYPES, Dim, Linear
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values

SIZES = ("1", "2", "7", "16", "31", "33", "64", "65", "96", "130", "257")


def _build(params: Params, random: np.random.Generator) -> Problem:
    dtype, inputs, count = params["dtype"], params.int("k"), params.int("outputs")
    outputs = tuple(Dim(max(1, params.int("n") - 3 * place)) for place in range(count))
    spec = Linear(input=Dim(inputs), outputs=outputs, dtype=dtype, bias=params.flag("bias"),
                  out_dtype=None if params["out"] == "same" else params["out"])
    x = values(random, (params.int("m"), inputs), dtype, params["values"])
    weight = [values(random, (out.size, inputs), dtype) for out in outputs]
    if params["values"] == "cancel" and inputs > 1:
        for part in weight:
            part[:, inputs // 2 :] = -part[:, : inputs - inputs // 2]
        x[:, inputs // 2 :] = x[:, : inputs - inputs // 2]
    biases = [values(random, (out.size,), dtype) for out in outputs] if spec.bias else []

    def alone(row: int) -> tuple[Problem, slice]:
        return Problem(spec, (x[row : row + 1], Given.WEIGHT, Given.BATCH), weight=tuple(weight + biases)), slice(row, row + 1)

    return Problem(
        spec, (x, Given.WEIGHT, Given.BATCH), weight=tuple(array.astype(DTYPES[dtype]) for array in weight + biases),
        rows=min(len(x), 3), alone=alone,
    )


FAMILIES = [Family(
    "linear.plain", 1,
    {"dtype": DTYPE, "m": ("0", "1", "2", "3", "5", "8", "17", "33", "64", "129"), "k": SIZES, "n": SIZES,
     "outputs": ("1", "2", "3"), "bias": YES_NO, "out": ("same", "float32"), "values": ("normal", "small", "large", "cancel")},
    judged(_build),
)]
