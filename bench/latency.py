"""Latency: a fixed number of clients, each sending its next request when the last one has ended (a closed loop)."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.llm import LLM
from ..core.output import RequestOutput
from ..errors import InferplaneError
from .throughput import warm_up
from .work import Work

PERCENTILES = (50, 90, 99)


@dataclass
class Trip:
    """One request's clock: when it was sent, and when each of its tokens arrived."""

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    error: InferplaneError | None = None

    @property
    def first_token_seconds(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def between_seconds(self) -> Sequence[float]:
        return np.diff(self.arrivals).tolist()

    @property
    def seconds(self) -> float:
        return self.arrivals[-1] - self.sent


@dataclass(frozen=True)
class Latency:
    """Milliseconds by percentile ("p50", ..., "max"), over all requests of a work. between: from one token to the next."""

    work: Work
    requests: int
    first_token_ms: dict[str, float]
    between_tokens_ms: dict[str, float] | None
    """None where each request draws a single token."""
    end_to_end_ms: dict[str, float]
    output_tokens_per_second: float
    host_percent: float


def measure_latency(llm: LLM, work: Work, rounds: int, rng: np.random.Generator, tell: Callable[[int], None]) -> Latency:
    """`work.requests` clients send `rounds` requests each. tell(requests ended)."""
    warm_up(llm, work, rng)
    prompts = [ids for _ in range(rounds) for ids in work.prompts(llm.loaded.model.vocab_size, rng)]
    before, start = llm.stats(), time.perf_counter()
    trips = _closed_loop(llm, work, prompts, tell)
    seconds = time.perf_counter() - start
    host_seconds = llm.stats().host_seconds - before.host_seconds
    between = [gap for trip in trips for gap in trip.between_seconds]
    return Latency(
        work, len(trips),
        first_token_ms=_percentiles([trip.first_token_seconds for trip in trips]),
        between_tokens_ms=_percentiles(between) if between else None,
        end_to_end_ms=_percentiles([trip.seconds for trip in trips]),
        output_tokens_per_second=rounds * sum(work.output_lengths) / seconds,
        host_percent=100 * host_seconds / seconds,
    )


def _closed_loop(llm: LLM, work: Work, prompts: Sequence[list[int]], tell: Callable[[int], None]) -> list[Trip]:
    engine, trips = llm.engine, [Trip() for _ in prompts]
    params = work.params() * (len(prompts) // work.requests)
    checked = [engine.check(ids, one) for ids, one in zip(prompts, params, strict=True)]
    free = threading.Semaphore(work.requests)
    for sent, (trip, prompt) in enumerate(zip(trips, checked, strict=True)):
        free.acquire()
        tell(max(0, sent - work.requests + 1))
        trip.sent = time.perf_counter()
        engine.submit(prompt, _clock(trip, free), stream=True)
    for ended in range(len(prompts) - work.requests, len(prompts)):
        free.acquire()
        tell(ended + 1)
    for trip in trips:
        if trip.error is not None:
            raise trip.error
    return trips


def _clock(trip: Trip, free: threading.Semaphore) -> Callable[[RequestOutput | InferplaneError], None]:
    def take(answer: RequestOutput | InferplaneError) -> None:
        if isinstance(answer, InferplaneError):
            trip.error = answer
        else:
            trip.arrivals.append(time.perf_counter())
        if trip.error is not None or answer.finished:  # type: ignore[union-attr]
            free.release()
    return take


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    found = {f"p{one}": 1e3 * float(np.percentile(seconds, one)) for one in PERCENTILES}
    return {**found, "max": 1e3 * max(seconds)}
