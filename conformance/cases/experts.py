"""router and moe: ties, one expert and many, idle ones, counts that divide into nothing; choices by bias and groups, biases, limits."""
from __future__ import annotations

import numpy as np

from ...ops import Dim, Moe, Router
from .. import naive
from ..case import Family, Params
from ..problem import Given, Problem, elsewhere
from .make import DTYPE, YES_NO, judged, values

FAR = 1000
"""A softmax does not see where all of its logits lie, and the exponentials of some are infinite, or zeros."""


def _router(params: Params, random: np.random.Generator) -> Problem:
    experts, tokens = params.int("experts"), params.int("tokens")
    spec = Router(experts=Dim(experts, "experts"), top_k=params.int("top_k"), renormalize=params.flag("renormalize"),
                  sigmoid=params.flag("sigmoid"))
    logits = values(random, (tokens, experts), "float32")
    if params.flag("ties"):
        logits = np.round(logits)
    if not spec.sigmoid:
        logits[1::3] -= FAR
        logits[2::3] += FAR
    return Problem(spec, (logits,))


MARGIN = 2.0**-18
"""Between any two scores of a choice by gates and a bias, of the largest, so that no rounding decides."""


def _biased_router(params: Params, random: np.random.Generator) -> Problem:
    experts, tokens = params.int("experts"), params.int("tokens")
    groups = None if params["groups"] == "none" else params.int("groups")
    spec = Router(
        experts=Dim(experts, "experts"), top_k=params.int("top_k"), renormalize=params.flag("renormalize"), sigmoid=params.flag("sigmoid"),
        bias=True, groups=groups, top_groups=groups and params.int("top_groups"),
        scale=None if params["scale"] == "none" else params.float("scale"),
    )
    bias = (values(random, (experts,), "float32") + np.float32(params["centre"])) * np.float32(0.3 if spec.sigmoid else 2 / experts)
    logits = np.zeros((tokens, experts), np.float32)
    for row in range(tokens):
        while not (_decided(spec, logits[row], bias) and _decided(spec, elsewhere(logits[row : row + 1])[0], bias)):
            logits[row] = values(random, (experts,), "float32")
    return Problem(spec, (logits, Given.WEIGHT), weight=(bias,))


def _decided(spec: Router, logits: np.ndarray, bias: np.ndarray) -> bool:
    """Whether float32 has no say in the order of experts, and of groups."""
    biased = spec.gates(logits[None].astype(np.float64)) + bias
    scores = [np.sort(biased[0])] + ([np.sort(spec.group_scores(biased)[0])] if spec.groups else [])
    return all(len(one) < 2 or np.diff(one).min() > MARGIN * np.abs(one).max() for one in scores)


def _moe(params: Params, random: np.random.Generator) -> Problem:
    experts, tokens, top_k = params.int("experts"), params.int("tokens"), params.int("top_k")
    embed, mlp, dtype = params.int("embed"), params.int("mlp"), params["dtype"]
    limited = params.values.get("limit", "none") != "none"
    spec = Moe(
        experts=Dim(experts, "experts"), embed=embed, mlp=Dim(mlp, "mlp"), top_k=top_k, activation="silu", dtype=dtype,
        bias=params.values.get("bias") == "yes", limit=params.float("limit") if limited else None,
        alpha=params.float("alpha") if limited else None,
    )
    used = {"all": experts, "one": 1, "few": max(top_k, experts // 2)}[params["spread"]]
    chosen = np.stack([random.permutation(max(used, top_k))[:top_k] for _ in range(tokens)]) if tokens else np.zeros((0, top_k))
    weights = random.dirichlet(np.ones(top_k), tokens).reshape(tokens, top_k).astype(np.float32)
    weight = (values(random, (experts, mlp, embed), dtype), values(random, (experts, mlp, embed), dtype),
              values(random, (experts, embed, mlp), dtype))
    biases = tuple(values(random, (experts, size), dtype) for size in (mlp, mlp, embed)) if spec.bias else ()
    return Problem(
        spec, (values(random, (tokens, embed), dtype), chosen.astype(np.int32), weights, Given.WEIGHT, Given.BATCH),
        weight=weight + biases, naive=naive.moe(spec),
    )


def _enough(params: Params) -> bool:
    return params.int("top_k") <= params.int("experts")


def _grouped(params: Params) -> bool:
    """Groups of one size that have enough between them; one value of what no group asks for."""
    if params["groups"] == "none":
        return params["top_groups"] == "1" and _enough(params)
    experts, groups, kept = (params.int(name) for name in ("experts", "groups", "top_groups"))
    return experts % groups == 0 and kept <= groups and params.int("top_k") <= kept * (experts // groups)


def _different(params: Params) -> bool:
    """From a plain mixture of experts."""
    plain = params["limit"] == "none"
    return _enough(params) and (params.flag("bias") or not plain) and (not plain or params["alpha"] == "1")


FAMILIES = [
    Family("experts.router", 1, {
        "tokens": ("0", "1", "7", "33"), "experts": ("1", "2", "5", "8", "60", "128"), "top_k": ("1", "2", "4", "8"),
        "renormalize": YES_NO, "sigmoid": YES_NO, "ties": YES_NO,
    }, judged(_router), _enough),
    Family("experts.moe", 1, {
        "dtype": DTYPE, "tokens": ("0", "1", "7", "33"), "experts": ("1", "2", "5", "8"), "top_k": ("1", "2", "4", "8"),
        "embed": ("8", "33", "64"), "mlp": ("8", "17", "32"), "spread": ("all", "one", "few"),
    }, judged(_moe), _enough),
    Family("experts.router.biased", 1, {
        "tokens": ("0", "1", "7", "33"), "experts": ("1", "4", "8", "60", "256"), "groups": ("none", "1", "2", "4", "8"),
        "top_groups": ("1", "2", "4"), "top_k": ("1", "2", "8"), "renormalize": YES_NO, "sigmoid": YES_NO, "scale": ("none", "2.5"),
        "centre": ("0", "-4"),
    }, judged(_biased_router), _grouped),
    Family("experts.moe.biased", 1, {
        "dtype": DTYPE, "tokens": ("0", "1", "7", "33"), "experts": ("1", "2", "5"), "top_k": ("1", "2", "4"), "embed": ("8", "33", "64"),
        "mlp": ("8", "17", "32"), "spread": ("all", "few"), "bias": YES_NO, "limit": ("none", "7", "0.5"), "alpha": ("1", "1.702"),
    }, judged(_moe), _different),
]
