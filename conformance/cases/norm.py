"""rms_norm, layer_norm and add_rms_norm: odd sizes, three dims, tiny and constant rows."""
from __future__ import annotations

import numpy as np

from ...ops import AddRmsNorm, LayerNorm, RmsNorm
from .. import naive
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values

SIZES = ("1", "2", "7", "16", "31", "64", "80", "128", "257", "1024", "2049")
ROWS = ("0", "1", "2", "5", "17", "3x4")
AXES = {"dtype": DTYPE, "rows": ROWS, "size": SIZES, "epsilon": ("1e-5", "1e-6"), "values": ("normal", "small", "large", "same", "shifted")}


def _x(params: Params, random: np.random.Generator) -> np.ndarray:
    rows = tuple(map(int, params["rows"].split("x")))
    return values(random, (*rows, params.int("size")), params["dtype"], params["values"])


def _rms(params: Params, random: np.random.Generator) -> Problem:
    spec = RmsNorm(size=params.int("size"), epsilon=params.float("epsilon"), dtype=params["dtype"], offset=params.float("offset"))
    return Problem(spec, (_x(params, random), Given.WEIGHT), weight=(values(random, (spec.size,), spec.dtype),))


def _layer(params: Params, random: np.random.Generator) -> Problem:
    spec = LayerNorm(size=params.int("size"), epsilon=params.float("epsilon"), dtype=params["dtype"], bias=params.flag("bias"))
    weight = tuple(values(random, (spec.size,), spec.dtype) for _ in range(2 if spec.bias else 1))
    return Problem(spec, (_x(params, random), Given.WEIGHT), weight=weight)


def _add_rms(params: Params, random: np.random.Generator) -> Problem:
    norm = RmsNorm(size=params.int("size"), epsilon=params.float("epsilon"), dtype=params["dtype"])
    spec, x = AddRmsNorm(norm=norm), _x(params, random)
    residual = values(random, x.shape, norm.dtype, params["values"])
    weight = (values(random, (norm.size,), norm.dtype),)
    return Problem(spec, (x, residual, Given.WEIGHT), weight=weight, naive=naive.add_rms_norm(spec))


FAMILIES = [
    Family("norm.rms", 1, {**AXES, "offset": ("0", "1")}, judged(_rms)),
    Family("norm.layer", 1, {**AXES, "bias": YES_NO}, judged(_layer)),
    Family("norm.add_rms", 1, AXES, judged(_add_rms)),
]
