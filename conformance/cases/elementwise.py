"""add, multiply, scale, activation and gated_activation, with special values among ordinary ones."""
from __future__ import annotations

import numpy as np

from ...ops import Activation, Add, GatedActivation, Multiply, Scale
from ..case import Family, Params
from ..problem import Problem
from .make import DTYPE, judged, values

SHAPES = ("0x5", "1x1", "1x7", "3x16", "2x33", "5x64", "1x257", "17x130", "2x3x8")
CHARACTERS = ("normal", "small", "large", "special")
FINITE = ("normal", "small", "large", "extreme")
KINDS = ("silu", "gelu", "gelu_tanh", "relu", "tanh")
AXES = {"dtype": DTYPE, "shape": SHAPES, "values": CHARACTERS}


def _array(params: Params, random: np.random.Generator) -> np.ndarray:
    return values(random, tuple(map(int, params["shape"].split("x"))), params["dtype"], params["values"])


def _add(params: Params, random: np.random.Generator) -> Problem:
    return Problem(Add(dtype=params["dtype"]), (_array(params, random), _array(params, random)))


def _multiply(params: Params, random: np.random.Generator) -> Problem:
    """No product of a subnormal and something huge: it is nothing where subnormals count as zero."""
    a, b = _array(params, random), _array(params, random)
    if params["values"] == "special":
        b = np.where(random.random(b.shape) < 0.3, 0, random.normal(size=b.shape)).astype(a.dtype)
    return Problem(Multiply(dtype=params["dtype"]), (a, b))


def _scale(params: Params, random: np.random.Generator) -> Problem:
    return Problem(Scale(factor=params.float("factor"), dtype=params["dtype"]), (_array(params, random),))


def _activation(params: Params, random: np.random.Generator) -> Problem:
    return Problem(Activation(kind=params["kind"], dtype=params["dtype"]), (_array(params, random),))


def _gated(params: Params, random: np.random.Generator) -> Problem:
    up = values(random, tuple(map(int, params["shape"].split("x"))), params["dtype"])
    return Problem(GatedActivation(kind=params["kind"], dtype=params["dtype"]), (_array(params, random), up))


def _normal(params: Params) -> bool:
    """A composition rounds activations that are subnormal in float16 by more than the op's bound."""
    return not (params["dtype"] == "float16" and params["values"] == "small")


FAMILIES = [
    Family("elementwise.add", 1, AXES, judged(_add)),
    Family("elementwise.multiply", 1, AXES, judged(_multiply)),
    Family("elementwise.scale", 1, {**AXES, "factor": ("0.5", "-1.7", "0", "12.25")}, judged(_scale)),
    Family("activation.plain", 1, {**AXES, "values": FINITE, "kind": KINDS}, judged(_activation)),
    Family("activation.gated", 1, {**AXES, "values": FINITE, "kind": KINDS}, judged(_gated), _normal),
]
