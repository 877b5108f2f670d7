"""Blocks between two platforms: one computes a prompt, the other goes on from its blocks. The partner is the rig's other platform."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...core.kv.salt import Salt
from ...core.loader import LoadOptions, load
from ...core.output import RequestOutput
from ...core.request import SamplingParams
from ...core.score import logits
from ...core.transfer import export_prefix, import_prefix
from ...errors import ExchangeError
from ...ops import tolerance
from ..address import Address
from ..case import Failed, Family, Outcome, Params, Verdict
from ..models import CONTEXT, MODELS, Array, RandomSource
from ..rig import Rig
from ..served import Alone, Setting, distribution, everything, serve
from .graph import DEPTH, FACTOR
from .make import DTYPE
from .prefixes import DAMAGES, damaged, prompt_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPT = 70
WAYS = ("out", "in")
"""The platform under test computes the prompt, or goes on."""


def _sides(params: Params, rig: Rig) -> tuple[Rig, Rig]:
    """(who computes the prompt, who goes on)"""
    return (rig, rig.partner) if params["way"] == "out" else (rig.partner, rig)


def _exported(rig: Rig, setting: Setting, seed: int, prompt: list[int], length: int = PROMPT) -> list[bytes]:
    with serve(rig, setting, seed) as served:
        served.ask(prompt, replace(GREEDY, max_tokens=1)).end()
        return export_prefix(served.engine, prompt[:length])


def _continued(rig: Rig, setting: Setting, seed: int, prompt: list[int], parts: list[bytes]) -> RequestOutput:
    """The answer on imported blocks, and on nothing else."""
    with serve(rig, setting, seed) as served:
        length = import_prefix(served.engine, prompt, parts)
        answer = served.ask(prompt, everything(GREEDY)).end()
    hits = answer.metrics.kv.hit_tokens if answer.metrics.kv else 0
    if not 0 < hits == length:
        raise Failed(f"{length} tokens were imported, and {hits} of them found")
    return answer


def _prefix(params: Params, address: Address, rig: Rig) -> Outcome:
    """Tokens equal in float32; log-probabilities in any dtype as near to float64 as the two platforms are alone, but for the factor."""
    theirs, ours = params.pair("blocks")
    kv_dtype = None if params["kv"] == "none" else params["kv"]
    setting = Setting(params["model"], params["dtype"], caching=True, kv_dtype=kv_dtype)
    prompt = prompt_of(address, PROMPT)
    first, second = _sides(params, rig)
    whole = PROMPT // max(theirs, ours) * max(theirs, ours)
    parts = _exported(first, replace(setting, block_tokens=theirs), address.seed, prompt, whole)
    [answer] = _continued(second, replace(setting, block_tokens=ours), address.seed, prompt, parts).outputs
    tokens, alone = [*prompt, *answer.token_ids[:-1]], [Alone(one, setting, address.seed) for one in (first, second)]
    exact = _scores(_exact(rig, setting, address.seed), tokens)
    usual = [_scores(one.loaded, tokens) for one in alone]
    found = np.stack([distribution(step) for step in answer.logprobs or ()])
    if setting.dtype == "float32" and kv_dtype is None:
        _expect_tokens(answer.token_ids, exact)
    worse = max(usual, key=lambda scores: float(np.square(scores - exact).mean()))
    reason = tolerance.naive_relative(found, worse, exact, factor=FACTOR, depth=DEPTH)
    if reason is not None:
        raise Failed(f"log-probabilities on imported blocks: {reason}")
    errors = [float(np.abs(scores - exact).max()) for scores in (found, *usual)]
    kernels = alone[0 if params["way"] == "out" else 1].kernels
    told = "log-probabilities are off by at most {:.2g} on imported blocks, by {:.2g} and {:.2g} where each computes alone".format(*errors)
    return Outcome(Verdict.PASS, "" if setting.dtype == "float32" and kv_dtype is None else told, kernels)


def _expect_tokens(tokens: tuple[int, ...], exact: Array) -> None:
    wanted = exact.argmax(axis=-1)
    if list(tokens) != wanted.tolist():
        raise Failed(f"tokens {list(tokens)} on imported blocks instead of {wanted.tolist()}")


def _exact(rig: Rig, setting: Setting, seed: int) -> Any:
    source = RandomSource(MODELS[setting.model], seed, setting.dtype)
    return load(source, rig.oracle.platform, LoadOptions(dtype="float64", max_model_len=CONTEXT))


def _scores(loaded: Any, tokens: list[int]) -> Array:
    """[drawn tokens, vocab] float64: log-probabilities of what follows the prompt, given the tokens."""
    scores = logits(loaded, tokens)[PROMPT - 1 :].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def _refused(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """What is not the other platform's own work, whole, for this model, is refused; and the prompt is computed as ever."""
    setting, prompt, what = Setting(caching=True), prompt_of(address, PROMPT), params["what"]
    first, second = _sides(params, rig)
    alone = Alone(second, setting, address.seed)
    if what == "weights":
        parts, salt = _exported(first, setting, address.seed + 1, prompt), Salt()
    else:
        parts, salt = damaged(what, _exported(first, setting, address.seed, prompt), alone.loaded, address)
    with serve(second, setting, address.seed) as served:
        try:
            import_prefix(served.engine, prompt, parts, salt)
        except ExchangeError:
            alone.expect("after a refused import", served.ask(prompt, GREEDY).end(), GREEDY)
        else:
            raise Failed(f"blocks with another {what} were imported")
    return alone.kernels


FAMILIES = [
    Family("exchange.prefix", 4, {
        "way": WAYS, "model": tuple(MODELS), "dtype": DTYPE, "kv": ("none", "int8", "float8_e4m3fn"),
        "blocks": ("16/16", "16/64", "64/16", "32/8"),
    }, _prefix),
    Family("exchange.refused", 4, {"way": WAYS, "what": (*DAMAGES, "weights")}, _refused),
]
