"""The work that is measured: so many requests at once, so many tokens in, so many out."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.request import SamplingParams
from ..errors import ConfigError, suggest


@dataclass(frozen=True)
class Work:
    """`requests` are sent at once, each with a random prompt of `prompt_tokens`; each draws exactly `output_tokens`."""

    name: str
    prompt_tokens: int
    output_tokens: int
    requests: int

    @property
    def length_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def counted(self) -> str:
        """Which tokens make the figure: those of the prompts where each request draws a single one."""
        return "prompt" if self.output_tokens == 1 else "output"

    @property
    def counted_tokens(self) -> int:
        return self.requests * (self.prompt_tokens if self.counted == "prompt" else self.output_tokens)

    def params(self, most_tokens: int | None = None) -> SamplingParams:
        """Greedy and to the end, so that every run computes the same number of tokens."""
        tokens = min(self.output_tokens, most_tokens or self.output_tokens)
        return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    def prompts(self, vocab: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """`requests` prompts of random ids."""
        for _ in range(self.requests):
            yield rng.integers(0, vocab, self.prompt_tokens).tolist()


WORKS = {work.name: work for work in (
    Work("decode1", prompt_tokens=16, output_tokens=64, requests=1),
    Work("prefill1k", prompt_tokens=1024, output_tokens=1, requests=1),
    Work("batch16", prompt_tokens=128, output_tokens=64, requests=16),
    Work("batch48", prompt_tokens=128, output_tokens=64, requests=48),
)}


def parse_works(text: str) -> Sequence[Work]:
    """Names, or PROMPT:OUTPUT:REQUESTS in numbers, with commas between. Raises `ConfigError`."""
    return [_parse(one.strip()) for one in text.split(",")]


def _parse(text: str) -> Work:
    if text in WORKS:
        return WORKS[text]
    sizes = text.split(":")
    if len(sizes) == 3 and all(size.isdecimal() and int(size) > 0 for size in sizes):
        return Work(text, *map(int, sizes))
    spelled = "Or write PROMPT:OUTPUT:REQUESTS, for instance 128:64:16."
    raise ConfigError(f"work {text!r} is unknown. {suggest(text, WORKS)} {spelled}")
