"""router and moe: ties, one expert and many, idle ones, counts that divide into nothing."""
from __future__ import annotations

import numpy as np

from ...ops import Dim, Moe, Router
from .. import naive
from ..case import Family, Params
from ..problem import Given, Problem
from .make import DTYPE, YES_NO, judged, values


def _router(params: Params, random: np.random.Generator) -> Problem:
    experts, tokens = params.int("experts"), params.int("tokens")
    spec = Router(experts=Dim(experts, "experts"), top_k=params.int("top_k"), renormalize=params.flag("renormalize"),
                  sigmoid=params.flag("sigmoid"))
    logits = values(random, (tokens, experts), "float32")
    if params.flag("ties"):
        logits = np.round(logits)
    return Problem(spec, (logits,))


def _moe(params: Params, random: np.random.Generator) -> Problem:
    experts, tokens, top_k = params.int("experts"), params.int("tokens"), params.int("top_k")
    embed, mlp, dtype = params.int("embed"), params.int("mlp"), params["dtype"]
    spec = Moe(experts=Dim(experts, "experts"), embed=embed, mlp=Dim(mlp, "mlp"), top_k=top_k, activation="silu", dtype=dtype)
    used = {"all": experts, "one": 1, "few": max(top_k, experts // 2)}[params["spread"]]
    chosen = np.stack([random.permutation(max(used, top_k))[:top_k] for _ in range(tokens)]) if tokens else np.zeros((0, top_k))
    weights = random.dirichlet(np.ones(top_k), tokens).reshape(tokens, top_k).astype(np.float32)
    weight = (values(random, (experts, mlp, embed), dtype), values(random, (experts, mlp, embed), dtype),
              values(random, (experts, embed, mlp), dtype))
    return Problem(
        spec, (values(random, (tokens, embed), dtype), chosen.astype(np.int32), weights, Given.WEIGHT, Given.BATCH),
        weight=weight, naive=naive.moe(spec),
    )


def _enough(params: Params) -> bool:
    return params.int("top_k") <= params.int("experts")


FAMILIES = [
    Family("experts.router", 1, {
        "tokens": ("0", "1", "7", "33"), "experts": ("1", "2", "5", "8", "60", "128"), "top_k": ("1", "2", "4", "8"),
        "renormalize": YES_NO, "sigmoid": YES_NO, "ties": YES_NO,
    }, judged(_router), _enough),
    Family("experts.moe", 1, {
        "dtype": DTYPE, "tokens": ("0", "1", "7", "33"), "experts": ("1", "2", "5", "8"), "top_k": ("1", "2", "4", "8"),
        "embed": ("8", "33", "64"), "mlp": ("8", "17", "32"), "spread": ("all", "one", "few"),
    }, judged(_moe), _enough),
]
