"""The work that is measured: so many requests at once, so many tokens in, so many out."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np

from ..core.request import SamplingParams
from ..errors import ConfigError, suggest


@dataclass(frozen=True)
class Work:
    """`requests` are sent at once, each with a random prompt of `prompt_tokens`; each draws exactly `output_tokens`.

    least_tokens: lengths are spread evenly from it up to those two, the same in every run. temperature: 0 is greedy.
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    requests: int
    least_tokens: int | None = None
    temperature: float = 0.0

    @property
    def length_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def counted(self) -> str:
        """Which tokens make the figure: those of the prompts where each request draws a single one."""
        return "prompt" if self.output_tokens == 1 else "output"

    @property
    def counted_tokens(self) -> int:
        return sum(self.prompt_lengths if self.counted == "prompt" else self.output_lengths)

    @property
    def prompt_lengths(self) -> Sequence[int]:
        return self._lengths[0]

    @property
    def output_lengths(self) -> Sequence[int]:
        return self._lengths[1]

    @cached_property
    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        """Of prompts and of answers; drawn as nano-vllm's benchmark draws them, which takes the ids in between."""
        if self.least_tokens is None:
            return [self.prompt_tokens] * self.requests, [self.output_tokens] * self.requests
        draw = Random(0)
        prompts = []
        for _ in range(self.requests):
            prompts.append(draw.randint(self.least_tokens, self.prompt_tokens))
            for _ in range(prompts[-1]):
                draw.randint(0, NANO_VLLM_IDS)
        return prompts, [draw.randint(self.least_tokens, self.output_tokens) for _ in range(self.requests)]

    def params(self, most_tokens: int | None = None) -> list[SamplingParams]:
        """One for each request, to the end, so that every run computes the same number of tokens."""
        return [
            SamplingParams(max_tokens=min(tokens, most_tokens or tokens), temperature=self.temperature, ignore_eos=True)
            for tokens in self.output_lengths
        ]

    def prompts(self, vocab: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """`requests` prompts of random ids."""
        for tokens in self.prompt_lengths:
            yield rng.integers(0, vocab, tokens).tolist()


NANO_VLLM_IDS = 10_000
"""The largest of the ids that it draws."""
WORKS = {work.name: work for work in (
    Work("decode1", prompt_tokens=16, output_tokens=64, requests=1),
    Work("prefill1k", prompt_tokens=1024, output_tokens=1, requests=1),
    Work("batch16", prompt_tokens=128, output_tokens=64, requests=16),
    Work("batch48", prompt_tokens=128, output_tokens=64, requests=48),
    Work("nano-vllm", prompt_tokens=1024, output_tokens=1024, requests=256, least_tokens=100, temperature=0.6),
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
