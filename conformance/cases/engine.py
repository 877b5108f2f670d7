"""The engine on a platform: however a request is computed, its answer is the one it has alone; and nothing leaks."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...core.request import SamplingParams
from ...core.score import logits
from ...errors import EngineError
from ..address import Address
from ..case import Failed, Family, Params
from ..models import MODELS
from ..rig import Rig
from ..served import EOS, NEAR, POISONED, Alone, Served, Setting, everything, serve, start
from .make import DTYPE, YES_NO

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=11, max_tokens=10, ignore_eos=True)
WAYS = {
    "greedy": GREEDY, "drawn": DRAWN, "filtered": replace(DRAWN, top_k=9, top_p=0.9, min_p=0.02),
    "penalties": replace(DRAWN, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3),
}
NEIGHBOURS: Mapping[str, Sequence[SamplingParams]] = {
    "greedy": [GREEDY], "drawn": [replace(DRAWN, seed=12)], "same_seed": [DRAWN], "top_k": [replace(DRAWN, seed=5, top_k=3)],
    "top_p": [replace(DRAWN, seed=5, top_p=0.3)], "penalties": [WAYS["penalties"]], "bias": [replace(DRAWN, logit_bias={7: 9.0, 8: -9.0})],
    "many": [GREEDY, replace(DRAWN, seed=4), WAYS["filtered"], WAYS["penalties"], replace(DRAWN, n=2, seed=9)],
}
TWO_WAYS = ("greedy", "drawn")
POISON = 96
"""A token that no prompt has, and that fails the step which computes it."""


def _prompts(address: Address, lengths: Sequence[int]) -> list[list[int]]:
    random = address.random()
    return [random.integers(4, POISON, length).tolist() for length in lengths]


def _each(way: SamplingParams, count: int) -> list[SamplingParams]:
    """The same for every request, but for the seed."""
    return [replace(way, seed=11 + place) for place in range(count)]


def _check(alone: Alone, served: Served, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
    """All at once; each answer is the one it has alone."""
    for place, (answer, one) in enumerate(zip(served.together(prompts, params), params, strict=True)):
        alone.expect(f"request {place} of {len(prompts)} with a prompt of {len(prompts[place])} tokens", answer, one)


def _happened(what: str, count: int) -> None:
    if count < 1:
        raise RuntimeError(f"the case could not do what it is for: {what}")


def _chunked(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    setting = Setting(params["model"], budget=params.int("budget"))
    alone, way = Alone(rig, setting, address.seed), everything(WAYS[params["way"]])
    with serve(rig, setting, address.seed) as served:
        _check(alone, served, _prompts(address, (70, 35, 5, 1)), _each(way, 4))
        _happened("split a prompt", served.runner.split_rows)
    return alone.kernels


def _batched(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    setting = Setting(params["model"])
    alone, way = Alone(rig, setting, address.seed), everything(WAYS[params["way"]])
    lengths = (17, 40, 1, 33, 16, 5, 64, 2)[: params.int("requests")]
    with serve(rig, setting, address.seed) as served:
        ways = [replace(one, max_tokens=4 + 3 * place) for place, one in enumerate(_each(way, len(lengths)))]
        _check(alone, served, _prompts(address, lengths), ways)
    return alone.kernels


def _prefix(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Again the same prompts; prompts that begin alike, at once; one that leaves the known one in the middle of a block; again
    after others took a part of its blocks."""
    when = params["when"]
    setting = Setting(params["model"], caching=True, long_prefill=params.int("chunk") or None, sequences=1 if when == "evicted" else 8)
    alone, way = Alone(rig, setting, address.seed), everything(WAYS[params["way"]])
    [first, tail, other, another] = _prompts(address, (50, 9, 30, 52))
    first_round, second_round = {
        "again": ([first], [first, first[:48]]),
        "together": ([first, [*first[:40], *tail], [*first[:49], *tail]], [first]),
        "diverged": ([first], [[*first[:37], *tail], first]),
        "evicted": ([first], [other, first, another, first]),
    }[when]
    with serve(rig, setting, address.seed) as served:
        for prompts in ((one,) for one in (*first_round, *second_round)) if when == "evicted" else (first_round, second_round):
            _check(alone, served, prompts, [way] * len(prompts))
        stats = served.engine.stats().kv
        _happened(*(("evict a block", stats.evicted_blocks) if when == "evicted" else ("find a known prefix", stats.hit_tokens)))
    return alone.kernels


def _preempted(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    setting = Setting(params["model"], caching=params.flag("caching"), sequences=1, budget=32)
    alone, way = Alone(rig, setting, address.seed), everything(replace(WAYS[params["way"]], max_tokens=24))
    with serve(rig, setting, address.seed) as served:
        _check(alone, served, _prompts(address, (31, 30, 29, 28)), _each(way, 4))
        _happened("preempt a request", served.scheduler.stats().preemptions)
    return alone.kernels


def _seeded(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """A seeded request's tokens are its own, whoever stands beside it, before it and behind it."""
    setting, neighbours = Setting(), NEIGHBOURS[params["neighbours"]]
    alone, way = Alone(rig, setting, address.seed), WAYS[params["way"]]
    prompts = _prompts(address, (20, *(13 + 3 * place for place in range(len(neighbours)))))
    with serve(rig, setting, address.seed) as served:
        for order in (1, -1):
            answers = served.together(prompts[::order], [way, *neighbours][::order])
            alone.expect(f"beside {params['neighbours']}", answers[0 if order == 1 else -1], way)
    return alone.kernels


def _samples(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    setting = Setting(params["model"], caching=params.flag("caching"))
    alone, way = Alone(rig, setting, address.seed), replace(WAYS[params["way"]], n=params.int("n"))
    with serve(rig, setting, address.seed) as served:
        [answer] = served.together(_prompts(address, (37,)), [way])
        alone.expect("several samples", answer, way)
        if len({one.token_ids for one in answer.outputs}) != way.n:
            raise Failed(f"{way.n} samples of one request do not differ: {[one.token_ids for one in answer.outputs]}")
    return alone.kernels


def _slots(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """More requests than slots: who comes later must not see what a slot's last owner left."""
    setting = Setting(params["model"], rows=params.int("rows"), caching=params.flag("caching"))
    alone = Alone(rig, setting, address.seed)
    prompts = _prompts(address, (40, 3, 22, 1, 35))
    with serve(rig, setting, address.seed) as served:
        _check(alone, served, prompts, [GREEDY, DRAWN] * 2 + [GREEDY])
    return alone.kernels


def _blocks(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Alone runs in the platform's own block size."""
    setting = Setting(params["model"], block_tokens=params.int("block"), budget=48)
    alone = Alone(rig, setting, address.seed)
    with serve(rig, setting, address.seed) as served:
        _check(alone, served, _prompts(address, (50, 16, 1)), [everything(GREEDY)] * 3)
    return alone.kernels


def _overlap(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Steps planned before the one before them was drawn give the same; what the host must see first is not planned ahead."""
    setting, way = Setting(params["model"]), everything(replace(WAYS[params["way"]], max_tokens=30))
    alone = Alone(rig, setting, address.seed)
    with serve(rig, setting, address.seed) as served:
        _check(alone, served, _prompts(address, (18, 31)), _each(way, 2))
        ahead = served.runner.pending_rows
        if way.needs_host and ahead:
            raise Failed(f"{ahead} rows were planned before the token that their penalties depend on was drawn")
        if not way.needs_host:
            _happened("plan a step ahead", ahead)
    return alone.kernels


def _abort(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """An abort gives what there is, leaves the neighbour alone, and frees all blocks (which `serve` looks at)."""
    setting, after = Setting(params["model"], caching=params.flag("caching")), params.int("after")
    alone, long = Alone(rig, setting, address.seed), replace(DRAWN, max_tokens=60)
    [ended, kept] = _prompts(address, (30, 21))
    with serve(rig, setting, address.seed) as served:
        with served.standing_still():
            neighbour, aborted = served.ask(kept, GREEDY), served.ask(ended, long, stream=True)
            if not after:
                served.engine.abort(aborted.name)
        for _ in range(after):
            aborted.next()
        served.engine.abort(aborted.name)
        answer = aborted.end()
        if answer.outputs[0].finish_reason not in ("abort", "length"):
            raise Failed(f"an aborted request ended with {answer.outputs[0].finish_reason}")
        alone.expect("what an aborted request had", answer, long, whole=False)
        alone.expect("beside an aborted request", neighbour.end(), GREEDY)
        served.expect_idle()
        _check(alone, served, [ended], [GREEDY])
    return alone.kernels


def _failed_step(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """A step that fails ends its own requests with an error; afterwards all is as if it had never been."""
    setting = Setting(params["model"], rows=2, caching=params.flag("caching"))
    alone = Alone(rig, setting, address.seed)
    prompts = _prompts(address, (40, 25, 33))
    with serve(rig, setting, address.seed) as served:
        served.runner.poison, served.runner.at_once = POISON, params["where"] == "submit"
        with served.standing_still():
            bad = [served.ask([*prompts[0], POISON], GREEDY), served.ask([POISON], GREEDY)]
            good = served.ask(prompts[1], GREEDY)
        for asked in bad:
            try:
                asked.end()
            except EngineError as error:
                if POISONED not in str(error):
                    raise Failed(f"the error of a failed step does not say what happened: {error}") from None
            else:
                raise Failed("a request whose step failed was answered as if nothing had happened")
        alone.expect("a request that shared no step with the failed ones", good.end(), GREEDY)
        served.expect_idle()
        _check(alone, served, [prompts[0], prompts[2]], [GREEDY, GREEDY])
    return alone.kernels


def _stop(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    setting, by = Setting(), params["by"]
    [eos], alone = EOS, Alone(rig, setting, address.seed)
    [prompt] = _prompts(address, (19,))
    free = alone.answer(prompt, GREEDY)[0].token_ids
    forced = replace(GREEDY, ignore_eos=False, logit_bias={eos: 1000.0})
    way, tokens, reason = {
        "eos": (forced, (eos,), "stop"),
        "ignored_eos": (replace(forced, ignore_eos=True), (eos,) * 10, "length"),
        "token": (replace(GREEDY, stop_token_ids=[free[4]]), free[: free.index(free[4]) + 1], "stop"),
        "length": (replace(GREEDY, max_tokens=7), free[:7], "length"),
        "one": (replace(GREEDY, max_tokens=1), free[:1], "length"),
        "context": (replace(GREEDY, max_tokens=96 - 19), alone.answer(prompt, replace(GREEDY, max_tokens=96 - 19))[0].token_ids, "length"),
    }[by]
    with serve(rig, setting, address.seed) as served:
        [answer] = served.together([prompt], [way])
    found = answer.outputs[0]
    if (found.token_ids, found.finish_reason) != (tokens, reason):
        raise Failed(f"ended with {found.finish_reason} and tokens {list(found.token_ids)}, and must with {reason} and {list(tokens)}")
    return alone.kernels


def _min_tokens(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """An end token that comes too early cannot be drawn, however likely it is."""
    setting, least = Setting(), params.int("least")
    [eos], alone = EOS, Alone(rig, setting, address.seed)
    way = replace(GREEDY, ignore_eos=False, logit_bias={eos: 1000.0}, min_tokens=least)
    with serve(rig, setting, address.seed) as served:
        [answer] = served.together(_prompts(address, (19,)), [way])
    tokens = answer.outputs[0].token_ids
    if len(tokens) != least + 1 or tokens.index(eos) != least:
        raise Failed(f"min_tokens {least}: tokens {list(tokens)}, and the end token must stand behind {least} others")
    return alone.kernels


def _scored(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """The log-probabilities that are told are those of the logits that scoring the same tokens gives."""
    setting, count = Setting(params["model"]), params.int("logprobs")
    alone = Alone(rig, setting, address.seed)
    with serve(rig, setting, address.seed) as served:
        [answer] = served.together(_prompts(address, (26,)), [replace(GREEDY, logprobs=count)])
    found = answer.outputs[0]
    scores = logits(alone.loaded, [*answer.prompt_token_ids, *found.token_ids[:-1]])[25:].astype(np.float64)
    right = scores - scores.max(axis=-1, keepdims=True)
    right -= np.log(np.exp(right).sum(axis=-1, keepdims=True))
    if tuple(scores.argmax(axis=-1).tolist()) != found.token_ids:
        raise Failed(f"greedy tokens {list(found.token_ids)}, and the best of the scored logits are {scores.argmax(axis=-1).tolist()}")
    for step, told in enumerate(found.logprobs or ()):
        kept = 97 if count == -1 else max(count, 1)
        best = set(np.argsort(-right[step], kind="stable")[:kept].tolist())
        if set(told) != best or any(abs(entry.logprob - right[step, token]) > NEAR for token, entry in told.items()):
            raise Failed(f"log-probabilities of token {step} are not those of the scored logits: {dict(list(told.items())[:5])}")
    return alone.kernels


def _close(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Whoever waits when an engine is closed hears so; closing again does nothing, and the next engine works."""
    setting = Setting()
    alone, [prompt] = Alone(rig, setting, address.seed), _prompts(address, (12,))
    long = replace(GREEDY, max_tokens=80)
    with serve(rig, setting, address.seed) as served:
        [answer] = served.together([prompt], [GREEDY])
        alone.expect("before an engine is closed", answer, GREEDY)
    closing = start(rig, setting, address.seed)
    asked = closing.ask(prompt, long, stream=True)
    if params["while"] == "running":
        asked.next()
    for _ in range(2):
        closing.engine.close()
    try:
        ended = asked.end()
    except EngineError as error:
        if "closed" not in str(error):
            raise Failed(f"a request that was cut off by a close hears: {error}") from None
    else:
        alone.expect("a request that ended before the close", ended, long)
    return alone.kernels


def _deterministic(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """With batch-invariant kernels alone, every bit of every log-probability stays, in any dtype."""
    how = params["how"]
    setting = Setting(
        params["model"], dtype=params["dtype"], deterministic=True, caching=how == "prefix", budget=16 if how == "chunked" else 64,
        sequences=1 if how == "preempted" else 8,
    )
    alone, way = Alone(rig, setting, address.seed), everything(replace(DRAWN, max_tokens=24 if how == "preempted" else 8))
    if not alone.bits:
        raise Failed(f"deterministic mode took kernels that do not declare batch_invariant: {', '.join(alone.kernels)}")
    prompts = _prompts(address, (31, 30, 29, 28) if how == "preempted" else (40, 17, 1))
    with serve(rig, setting, address.seed) as served:
        for _ in range(2 if how == "prefix" else 1):
            _check(alone, served, prompts, _each(way, len(prompts)))
        hits, preemptions = served.engine.stats().kv.hit_tokens, served.scheduler.stats().preemptions
        _happened(how, {"prefix": hits, "preempted": preemptions, "chunked": served.runner.split_rows}.get(how, 1))
    return alone.kernels


MODEL = tuple(MODELS)
FAMILIES = [Family(f"engine.{name}", 4, axes, run) for name, run, axes in (
    ("chunked", _chunked, {"model": MODEL, "budget": ("16", "33", "64"), "way": TWO_WAYS}),
    ("batched", _batched, {"model": MODEL, "requests": ("2", "5", "8"), "way": TWO_WAYS}),
    ("prefix", _prefix, {"model": MODEL, "when": ("again", "together", "diverged", "evicted"), "chunk": ("0", "16"), "way": TWO_WAYS}),
    ("preempted", _preempted, {"model": MODEL, "caching": YES_NO, "way": ("greedy", "penalties")}),
    ("seeded", _seeded, {"neighbours": tuple(NEIGHBOURS), "way": ("drawn", "filtered")}),
    ("samples", _samples, {"model": MODEL[::2], "n": ("2", "3"), "caching": YES_NO, "way": ("drawn",)}),
    ("slots", _slots, {"model": MODEL, "rows": ("1", "2"), "caching": YES_NO}),
    ("blocks", _blocks, {"model": MODEL[::2], "block": ("1", "8", "16", "32", "64")}),
    ("overlap", _overlap, {"model": MODEL, "way": tuple(WAYS)}),
    ("abort", _abort, {"model": MODEL, "after": ("0", "1", "3"), "caching": YES_NO}),
    ("failed_step", _failed_step, {"model": MODEL[::2], "caching": YES_NO, "where": ("submit", "result")}),
    ("stop", _stop, {"by": ("eos", "ignored_eos", "token", "length", "one", "context")}),
    ("min_tokens", _min_tokens, {"least": ("1", "4")}),
    ("scored", _scored, {"model": MODEL, "logprobs": ("-1", "0", "5")}),
    ("close", _close, {"while": ("running", "waiting")}),
    ("deterministic", _deterministic, {"model": MODEL[::2], "dtype": DTYPE, "how": ("batched", "chunked", "prefix", "preempted")}),
)]
