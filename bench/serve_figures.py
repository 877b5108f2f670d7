"""From the trips of a load to its figures: percentiles, rates, goodput and errors. Plain arithmetic."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .serve_client import Trip

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
TIMELINE_STEPS = 60


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count as good. itl: its mean time from one token to the next."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"--slo-{name.replace('_', '-')} must be above 0; found {value:g}.")

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.itl_ms is not None

    def holds(self, trip: Trip) -> bool:
        mean = mean_gap(trip)
        return (self.ttft_ms is None or 1e3 * (trip.arrivals[0] - trip.due) <= self.ttft_ms) and (
            self.itl_ms is None or mean is None or 1e3 * mean <= self.itl_ms)


def figures(trips: Sequence[Trip], slo: Slo, began: float, ended: float) -> dict[str, Any]:
    """Of trips between two times of the same clock. What was still under way counts as `unfinished`, and in no latency.

    Times to the first token and to the end are counted from when a request was due; `late_ms` is how much of that is the client's.
    Tokens are those of requests that ended well.
    """
    well = [trip for trip in trips if trip.error is None and trip.ended is not None]
    seconds = max(ended - began, 1e-9)
    tokens = sum(trip.output_tokens for trip in well)
    good = sum(map(slo.holds, well)) if slo else None
    return {
        "seconds": seconds,
        "requests": len(trips),
        "completed": len(well),
        "unfinished": sum(trip.ended is None for trip in trips),
        "errors": dict(Counter(trip.error for trip in trips if trip.error).most_common()),
        "errors_said": {trip.error: trip.said for trip in reversed(trips) if trip.error and trip.said},
        "prompt_tokens": sum(trip.prompt_tokens for trip in well),
        "output_tokens": tokens,
        "requests_per_second": len(well) / seconds,
        "output_tokens_per_second": tokens / seconds,
        "total_tokens_per_second": (tokens + sum(trip.prompt_tokens for trip in well)) / seconds,
        "goodput": None if good is None else {
            "requests_per_second": good / seconds, "good": good, "share": good / len(trips) if trips else 0.0, **asdict(slo)},
        "ttft_ms": spread([trip.arrivals[0] - trip.due for trip in well]),
        "itl_ms": spread([gap for trip in well for gap in np.diff(trip.arrivals).tolist()]),
        "mean_itl_ms": spread([gap for trip in well if (gap := mean_gap(trip)) is not None]),
        "end_to_end_ms": spread([trip.arrivals[-1] - trip.due for trip in well]),
        "late_ms": spread([trip.sent - trip.due for trip in trips if trip.sent is not None]),
        "timeline": timeline(trips, began, ended),
    }


def mean_gap(trip: Trip) -> float | None:
    """Seconds from one token to the next, on average; None where there was one token."""
    if trip.output_tokens < 2:
        return None
    return (trip.arrivals[-1] - trip.arrivals[0]) / (trip.output_tokens - 1)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds: the mean, percentiles (interpolated, as NumPy's default) and both ends; None of nothing."""
    if not seconds:
        return None
    values = 1e3 * np.asarray(seconds)
    found = {f"p{one}": float(np.percentile(values, one)) for one in PERCENTILES}
    return {"mean": float(values.mean()), "min": float(values.min()), **found, "max": float(values.max())}


def timeline(trips: Sequence[Trip], began: float, ended: float) -> dict[str, list[float]]:
    """Over the run, in equal steps: seconds at each step's end, tokens per second within it, requests under way at its end."""
    edges = np.linspace(began, ended, TIMELINE_STEPS + 1)
    weights = [trip.output_tokens / len(trip.arrivals) if trip.output_tokens else 1.0 for trip in trips if trip.arrivals]
    arrivals = [trip.arrivals for trip in trips if trip.arrivals]
    counted = np.zeros(TIMELINE_STEPS)
    for times, weight in zip(arrivals, weights, strict=True):
        counted += weight * np.histogram(times, edges)[0]
    sent = np.sort([trip.sent for trip in trips if trip.sent is not None])
    left = np.sort([ended if trip.ended is None else trip.ended for trip in trips if trip.sent is not None])
    inside = np.searchsorted(sent, edges[1:], "right") - np.searchsorted(left, edges[1:], "left")
    width = max((ended - began) / TIMELINE_STEPS, 1e-9)
    return {
        "seconds": (edges[1:] - began).tolist(), "tokens_per_second": (counted / width).tolist(), "running": inside.tolist(),
    }

