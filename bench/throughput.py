"""Throughput: all requests of a work at once, and the tokens of the whole run over its time."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from ..conformance.limits import Limits, measure_limits, typical
from ..core.llm import LLM
from .roofline import bound, cost
from .work import Work

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Run:
    """One repeat. step_tokens: computed by `steps` steps of the engine. host_seconds: planning, packing and handing out.

    cpu_seconds: of all of this process's threads. Far below what the threads could have used, others had the processor.
    """

    seconds: float
    cpu_seconds: float
    steps: int
    step_tokens: int
    host_seconds: float


@dataclass(frozen=True)
class Throughput:
    """A work's figure: the median of its runs, against what the machine could do while they ran.

    of_limit: the median of runs, each against the limits measured before and after it.
    """

    work: Work
    counted: str
    tokens_per_second: float
    slowest: float
    fastest: float
    limit_tokens_per_second: float | None
    limit_by: str | None
    of_limit: float | None
    host_percent: float
    cores_used: float
    limits: Limits
    runs: tuple[Run, ...]


def measure_throughput(llm: LLM, work: Work, repeats: int, rng: np.random.Generator, tell: Callable[[int], None]) -> Throughput:
    """tell(repeats done). The limits are measured before the first run and after each."""
    warm_up(llm, work, rng)
    limits, runs = [measure_limits(llm.loaded.platform)], []
    for done in range(repeats):
        runs.append(_run(llm, work, rng))
        limits.append(measure_limits(llm.loaded.platform))
        tell(done + 1)
    rates = [work.counted_tokens / run.seconds for run in runs]
    needs = cost(llm.loaded.model)
    found = bound(work, needs, typical(limits))
    around = [bound(work, needs, typical(pair)) for pair in pairwise(limits)]
    return Throughput(
        work, work.counted, median(rates), min(rates), max(rates),
        limit_tokens_per_second=found.tokens_per_second if found else None,
        limit_by=found.by if found else None,
        of_limit=median(rate / one.tokens_per_second for rate, one in zip(rates, around, strict=True) if one) if found else None,
        host_percent=100 * median(run.host_seconds / run.seconds for run in runs),
        cores_used=median(run.cpu_seconds / run.seconds for run in runs),
        limits=typical(limits), runs=tuple(runs),
    )


def warm_up(llm: LLM, work: Work, rng: np.random.Generator) -> None:
    """The work's own shapes for a few tokens, so that no run pays for a first time."""
    _generate(llm, work, rng, WARM_UP_TOKENS)


def _run(llm: LLM, work: Work, rng: np.random.Generator) -> Run:
    before, cpu = llm.stats(), time.process_time()
    seconds = _generate(llm, work, rng)
    after, cpu_seconds = llm.stats(), time.process_time() - cpu
    return Run(
        seconds, cpu_seconds, steps=after.steps - before.steps, step_tokens=after.step_tokens - before.step_tokens,
        host_seconds=after.host_seconds - before.host_seconds,
    )


def _generate(llm: LLM, work: Work, rng: np.random.Generator, most_tokens: int | None = None) -> float:
    prompts = [{"prompt_token_ids": ids} for ids in work.prompts(llm.loaded.model.vocab_size, rng)]
    start = time.perf_counter()
    llm.generate(prompts, work.params(most_tokens))
    return time.perf_counter() - start
