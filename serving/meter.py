"""A Meter observes one request of the engine from its first token to its end."""
from __future__ import annotations

import time

from ..core.output import RequestOutput
from ..core.request import SamplingParams
from .metrics import Metrics


class Meter:
    """streamed: each growth is seen, so that the time between two tokens is known."""

    def __init__(self, metrics: Metrics, params: SamplingParams, *, streamed: bool) -> None:
        self._metrics, self._params, self._streamed = metrics, params, streamed
        self._seen = [0] * params.n
        self._last = [0.0] * params.n
        self._open = set(range(params.n))
        self._told_first = False

    def grew(self, output: RequestOutput) -> None:
        now, times = time.monotonic(), output.metrics
        if not self._told_first and times.first_token is not None:
            self._told_first = True
            self._metrics.first_token.observe(times.first_token - times.arrival)
            self._metrics.prompt_tokens.inc(len(output.prompt_token_ids))
        for place, choice in enumerate(output.outputs):
            count = len(choice.token_ids)
            if self._streamed and count > self._seen[place]:
                self._observe_gap(place, count - self._seen[place], now)
                self._seen[place] = count
            if choice.finish_reason and place in self._open:
                self._open.discard(place)
                self._metrics.ended[choice.finish_reason].inc()
                self._metrics.answer_sizes.observe(count)
        if output.finished:
            self._end(output)

    def close(self) -> None:
        """Answers that nobody waits for any more."""
        self._metrics.ended["abort"].inc(len(self._open))
        self._open.clear()

    def _observe_gap(self, place: int, tokens: int, now: float) -> None:
        """Tokens that came together share the time since the ones before."""
        if self._seen[place]:
            gap = (now - self._last[place]) / tokens
            for _ in range(tokens):
                self._metrics.between.observe(gap)
        self._last[place] = now

    def _end(self, output: RequestOutput) -> None:
        times, longest = output.metrics, max(len(choice.token_ids) for choice in output.outputs)
        if times.finished is None:
            return
        self._metrics.prompt_sizes.observe(len(output.prompt_token_ids))
        self._metrics.choices.observe(self._params.n)
        self._metrics.limits.observe(self._params.max_tokens or 0)
        self._metrics.longest.observe(longest)
        self._metrics.whole.observe(times.finished - times.arrival)
        if times.scheduled is not None and times.first_token is not None:
            self._metrics.queued.observe(times.scheduled - times.arrival)
            self._metrics.prefill.observe(times.first_token - times.scheduled)
            self._metrics.decode.observe(times.finished - times.first_token)
            self._metrics.inference.observe(times.finished - times.scheduled)
        if times.first_token is not None and longest > 1:
            self._metrics.mean_between.observe((times.finished - times.first_token) / (longest - 1))
