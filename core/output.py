"""What a person gets back, and how it grows: text token by token, stop strings, log-probabilities, times."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..ops import Sampled
from .kv.stats import KVReport
from .request import Request
from .scheduler.plan import FinishReason
from .tokenizer import Tokenizer


class Logprob(NamedTuple):
    """One token's log-probability, from the model's own logits, before penalties and temperature."""

    logprob: float
    rank: int | None
    """1 is the likeliest; None: not among those that were asked for."""
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One of a request's `n` answers, so far. `delta` is what the last step added to `text`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    """For each token: token id -> Logprob, the drawn one first, then the best."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token id (None for the model's own end token)."""
    delta: str = ""


@dataclass(frozen=True)
class RequestMetrics:
    """Seconds on the engine's clock, and where the prompt's blocks came from. scheduled: when its first step was planned; told last."""

    arrival: float
    first_token: float | None = None
    finished: float | None = None
    scheduled: float | None = None
    kv: KVReport | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A request as it stands: all of its answers so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestMetrics = field(repr=False, default=RequestMetrics(0.0))
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None
    """For each token of the prompt, as `CompletionOutput.logprobs`; None for the first."""

    def since(self, earlier: RequestOutput) -> RequestOutput:
        """The same, for somebody who has not seen `earlier` either: what that added is part of `delta`."""
        outputs = tuple(
            replace(now, delta=before.delta + now.delta) if before.delta else now
            for before, now in zip(earlier.outputs, self.outputs, strict=True)
        )
        return replace(self, outputs=outputs)


def logprobs_of(tokenizer: Tokenizer | None, token: int, asked: int, sampled: Sampled, place: int) -> dict[int, Logprob]:
    """The token drawn at `place` of a step, then the best of those that were asked for."""
    def one(token: int, value: float, rank: int | None) -> Logprob:
        return Logprob(value, rank, tokenizer.decode([token], skip_special_tokens=False) if tokenizer else "")

    count = len(sampled.top_tokens[place]) if asked == -1 else asked
    best, values = sampled.top_tokens[place][:count], sampled.top_logprobs[place][:count]
    ranks = {int(other): rank for rank, other in enumerate(best, 1)}
    entry = {token: one(token, float(sampled.logprob[place]), ranks.get(token))}
    for other, value in zip(ranks, values, strict=True):
        entry.setdefault(other, one(other, float(value), ranks[other]))
    return entry


class Completion:
    """One growing answer. Only the engine's thread writes it."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, eos_ids: frozenset[int]) -> None:
        self.request, self.tokenizer, self.eos_ids = request, tokenizer, eos_ids
        params = request.params
        self.stops: tuple[str, ...] = tuple(params.stop or ())
        self.detokenizer = tokenizer.detokenizer(skip_special_tokens=params.skip_special_tokens) if tokenizer else None
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self.cumulative = 0.0
        self.text = ""
        self.told = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def push(self, token: int, ended: FinishReason | None, sampled: Sampled, place: int) -> bool:
        """Take the token drawn at `place` of a step. True: a stop string was found, so the sequence must be finished."""
        self.token_ids.append(token)
        if self.logprobs is not None:
            self._push_logprobs(token, sampled, place)
        stopped_by_token = ended == "stop" and token in self.request.stop_ids
        hidden = stopped_by_token and not self.request.params.include_stop_str_in_output
        added = "" if self.detokenizer is None or hidden else self.detokenizer.push([token])
        if ended and self.detokenizer is not None:
            added += self.detokenizer.finish()
        if stopped_by_token and token not in self.eos_ids:
            self.stop_reason = token
        self.finish_reason = ended
        return self._push_text(added)

    def _push_text(self, added: str) -> bool:
        before, self.text = len(self.text), self.text + added
        if not self.stops or len(self.token_ids) <= self.request.params.min_tokens:
            return False
        found = [(at, stop) for stop in self.stops if (at := self.text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if not found:
            return False
        at, self.stop_reason = min(found, key=lambda pair: (pair[0], len(pair[1])))
        kept = at + len(self.stop_reason) if self.request.params.include_stop_str_in_output else at
        self.text, self.finish_reason = self.text[:kept], "stop"
        return True

    def _push_logprobs(self, token: int, sampled: Sampled, place: int) -> None:
        assert self.logprobs is not None and self.request.params.logprobs is not None
        self.logprobs.append(entry := logprobs_of(self.tokenizer, token, self.request.params.logprobs, sampled, place))
        self.cumulative += entry[token].logprob

    def held(self) -> int:
        """Characters at the end that may yet turn out to begin a stop string."""
        if self.finish_reason or not self.stops:
            return 0
        longest = min(len(self.text), max(map(len, self.stops)) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(self.text[-n:]) for stop in self.stops)), 0)

    def output(self) -> CompletionOutput:
        """A snapshot; `delta` is what was added since the last one."""
        told = max(self.told, len(self.text) - self.held())
        delta, self.told = self.text[self.told : told], told
        return CompletionOutput(
            self.request.sample_index, self.text[:told], tuple(self.token_ids),
            None if self.logprobs is None else self.cumulative,
            None if self.logprobs is None else tuple(self.logprobs),
            self.finish_reason, self.stop_reason, delta,
        )
