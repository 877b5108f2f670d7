"""Rates: what one API key may ask for in a minute, in requests and in tokens."""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Refused

MINUTE_SECONDS = 60.0


@dataclass
class Bucket:
    """A token bucket: it holds at most `rate`, and gains as much in a minute. What is taken beyond it is a debt to wait for."""

    rate: int
    clock: Callable[[], float]
    level: float = field(init=False)
    seen: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.seen = float(self.rate), self.clock()

    def wait_seconds(self, amount: float) -> float:
        """Until so much is there; 0: now."""
        now = self.clock()
        self.level = min(self.rate, self.level + (now - self.seen) * self.rate / MINUTE_SECONDS)
        self.seen = now
        return max(0.0, (amount - self.level) * MINUTE_SECONDS / self.rate)

    def take(self, amount: float) -> None:
        self.level -= amount


class Rates:
    """requests, tokens: a minute, of each key; None: no limit. Tokens are counted when they are known: the prompt's and those drawn."""

    def __init__(self, requests: int | None, tokens: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = {name: rate for name, rate in (("requests", requests), ("tokens", tokens)) if rate is not None}
        self._clock = clock
        self._keys: dict[str, dict[str, Bucket]] = {}

    def enter(self, key: str) -> None:
        """Raises `Refused`, with the seconds to wait."""
        if not self._limits:
            return
        buckets = self._of(key)
        for name, bucket in buckets.items():
            if wait := bucket.wait_seconds(1.0):
                raise Refused(429, f"this API key has used its {bucket.rate} {name} a minute; try again later",
                              code="rate_limit_exceeded", headers={"retry-after": str(math.ceil(wait))})
        if "requests" in buckets:
            buckets["requests"].take(1.0)

    def used(self, key: str, tokens: int) -> None:
        if "tokens" in self._limits:
            self._of(key)["tokens"].take(tokens)

    def _of(self, key: str) -> dict[str, Bucket]:
        return self._keys.setdefault(key, {name: Bucket(rate, self._clock) for name, rate in self._limits.items()})
