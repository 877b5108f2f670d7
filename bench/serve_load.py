"""What a server is loaded with: conversations of random prompts, how many at once or per second, and for how long."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

Range = tuple[int, int]
"""Tokens, from and to, both included."""
ENOUGH_REQUESTS = 100
"""Where nobody said how many, or for how long."""


@dataclass(frozen=True)
class Load:
    """rate: conversations per second, at random times (Poisson), whoever is still waiting (an open loop). concurrency: so many
    clients, each of which asks again when it was answered (a closed loop). One of the two.

    A prompt is the prefix, which all conversations share, and tokens of its own; each later turn sends what was said before and as
    many again. requests: turns in all. duration_seconds: beyond it nothing is sent; what was sent is waited for.
    think_seconds: the mean of the time between an answer and the next turn, which is exponential.
    ids: prompts are made of ids below it.
    """

    rate: float | None = None
    concurrency: int | None = None
    requests: int | None = None
    duration_seconds: float | None = None
    prompt_tokens: Range = (128, 128)
    output_tokens: Range = (64, 64)
    shared_prefix_tokens: int = 0
    turns: int = 1
    think_seconds: float = 0.0
    ids: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise ConfigError("a load has either a rate (an open loop) or a concurrency (a closed loop). Give one of them.")
        above = {"rate": self.rate, "duration": self.duration_seconds}
        for name, value in above.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0; found {value:g}.")
        least = {"concurrency": (self.concurrency, 1), "requests": (self.requests, 1), "turns": (self.turns, 1), "ids": (self.ids, 2),
                 "shared prefix": (self.shared_prefix_tokens, 0), "think seconds": (self.think_seconds, 0)}
        for name, (number, smallest) in least.items():
            if number is not None and not smallest <= number < float("inf"):
                raise ConfigError(f"{name} must be at least {smallest}; found {number}.")

    @property
    def most_requests(self) -> int | None:
        """None: as many as the duration allows."""
        return ENOUGH_REQUESTS if self.requests is None and self.duration_seconds is None else self.requests

    @property
    def longest_tokens(self) -> int:
        """Of a last turn, its answer included."""
        return self.shared_prefix_tokens + self.turns * (self.prompt_tokens[1] + self.output_tokens[1])

    def describe(self) -> str:
        """For a heading."""
        loop = f"{self.rate:g} conversations/s at random times" if self.rate is not None else f"{self.concurrency} clients"
        parts = [loop, f"{_told(self.prompt_tokens)} tokens in, {_told(self.output_tokens)} out"]
        if self.shared_prefix_tokens:
            parts.append(f"after {self.shared_prefix_tokens} shared ones")
        if self.turns > 1:
            parts.append(f"{self.turns} turns, {self.think_seconds:g} s apart")
        return ", ".join(parts)


class Conversation:
    """One chat: what was said so far, and what is asked next. Its draws depend on the load's seed and its place, from -1 on, alone."""

    def __init__(self, load: Load, place: int) -> None:
        self._load, self._rng = load, np.random.default_rng([load.seed, place + 2])
        self._said = _ids(np.random.default_rng([load.seed, 0]), load.shared_prefix_tokens, load.ids)

    def ask(self) -> tuple[list[int], int]:
        """(the prompt of the next turn, tokens of its answer)"""
        self._said = self._said + _ids(self._rng, self._draw(self._load.prompt_tokens), self._load.ids)
        return self._said, self._draw(self._load.output_tokens)

    def hear(self, ids: Sequence[int]) -> None:
        """The answer becomes part of what was said."""
        self._said = self._said + list(ids)

    def think_seconds(self) -> float:
        return float(self._rng.exponential(self._load.think_seconds)) if self._load.think_seconds else 0.0

    def _draw(self, tokens: Range) -> int:
        return int(self._rng.integers(tokens[0], tokens[1], endpoint=True))


def parse_tokens(name: str, text: str) -> Range:
    """`128`, or `64-256`. Raises `ConfigError`."""
    ends = [one.strip() for one in text.split("-")]
    if len(ends) <= 2 and all(end.isdecimal() for end in ends) and 1 <= int(ends[0]) <= int(ends[-1]):
        return int(ends[0]), int(ends[-1])
    raise ConfigError(f"{name} {text!r} is no number of tokens. Write one like 128, or a range like 64-256.")


def _ids(rng: np.random.Generator, tokens: int, below: int) -> list[int]:
    found: list[int] = rng.integers(0, below, tokens).tolist()
    return found


def _told(tokens: Range) -> str:
    return f"{tokens[0]:,}" if tokens[0] == tokens[1] else f"{tokens[0]:,}-{tokens[1]:,}"
