"""The engine: requests in from any thread; one thread of its own plans, submits, and hands out what was drawn."""
from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..errors import EngineError, InferplaneError, RequestError
from ..platforms.contract import Pending
from .kv.salt import Salt
from .kv.stats import KVStats
from .output import Completion, RequestMetrics, RequestOutput, logprobs_of
from .prompt_scores import PromptScores, Score, scores
from .request import Key, Request, SamplingParams, expand
from .runner import Runner
from .scheduler.plan import StepPlan, Update
from .scheduler.scheduler import Scheduler
from .structured import Grammars, Guide, StructuredOutputs
from .tokenizer import Tokenizer

Sink = Callable[[RequestOutput | InferplaneError], None]
"""Called from the engine's thread: with each growth of a streamed request, with the end of any, or with its error."""

MASKS_SINCE = (1, 2)
"""The contract that samplers honour masks by."""
AHEAD = 2
"""Steps in flight: the device computes one while the host plans and uploads the next."""


class CheckedPrompt(NamedTuple):
    """A prompt that `Engine.check` found runnable."""

    name: str
    text: str | None
    tokens: Any
    """[tokens] int32."""
    params: SamplingParams
    guide: Guide | None = None


@dataclass
class _Entry:
    """One request between its arrival and its end."""

    sink: Sink
    stream: bool
    prompt: str | None
    prompt_ids: tuple[int, ...]
    requests: tuple[Request, ...]
    completions: tuple[Completion, ...]
    arrival: float
    first_token: float | None = None
    scheduled: float | None = None
    kv: list[Any] = field(default_factory=list)
    scores: PromptScores | None = None

    @property
    def finished(self) -> bool:
        return all(completion.finish_reason for completion in self.completions)

    def end(self, update: Update) -> None:
        """Of one of its sequences."""
        if update.kv is not None:
            self.kv.append(update.kv)
        if update.started is not None:
            self.scheduled = min(update.started, self.scheduled or update.started)

    def output(self, now: float) -> RequestOutput:
        finished = self.finished
        metrics = RequestMetrics(
            self.arrival, self.first_token, now if finished else None, self.scheduled, self.kv[0] if self.kv else None)
        outputs = tuple(completion.output() for completion in self.completions)
        judged = None if self.scores is None else self.scores.told
        return RequestOutput(self.requests[0].request_id, self.prompt, self.prompt_ids, outputs, finished, metrics, judged)


@dataclass(frozen=True)
class EngineStats:
    """A moment's counts, and totals since the start.

    host_seconds: spent planning, packing and handing out, over `steps` steps of `step_tokens` tokens computed.
    busy_seconds: in which there were steps to compute.
    drawn_tokens: those that requests received. preemptions: sequences that lost their blocks and were computed again.
    failed_in_a_row: steps that failed since the last one that did not.
    """

    running: int
    waiting: int
    steps: int
    step_tokens: int
    drawn_tokens: int
    preemptions: int
    host_seconds: float
    busy_seconds: float
    failed_in_a_row: int
    kv: KVStats


class Engine:
    """Owns the scheduler and the runner; every change of theirs happens on its thread.

    tokenizer: None where only token ids come in and go out.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runner, tokenizer: Tokenizer | None, *,
        eos_ids: frozenset[int], max_model_len: int, seed: int = 0,
    ) -> None:
        self.scheduler, self.runner, self.tokenizer = scheduler, runner, tokenizer
        self.eos_ids, self.max_model_len = eos_ids, max_model_len
        vocab = runner.loaded.model.vocab_size
        self._grammars = None if tokenizer is None else Grammars(tokenizer, vocab, tuple(eos_ids))
        self._seeds = itertools.count(seed << 32)
        self._names = itertools.count(1)
        self._entries: dict[str, _Entry] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._broken: BaseException | None = None
        self._steps = self._step_tokens = self._drawn_tokens = self._failed_in_a_row = 0
        self._host_seconds = self._busy_seconds = 0.0
        self._thread = threading.Thread(target=self._loop, name="inferplane-engine", daemon=True)
        self._thread.start()
        runner.watch(self._lose)

    def check(self, prompt: Sequence[int] | str, params: SamplingParams, request_id: str | None = None) -> CheckedPrompt:
        """Name and tokenize a request, and raise `RequestError` if it can never run. Any thread."""
        name = request_id if request_id is not None else f"request-{next(self._names)}"
        if not isinstance(prompt, str):
            text: str | None = None
            tokens: Sequence[int] = prompt
        elif self.tokenizer is None:
            raise RequestError("a prompt was given as text, and this model has no tokenizer; give token ids")
        else:
            text, tokens = prompt, self.tokenizer.encode(prompt)
        request = expand(name, tokens, params, eos_ids=self.eos_ids, max_model_len=self.max_model_len)[0]
        self.scheduler.check(request)
        vocab = self.runner.loaded.model.vocab_size
        biased = list(dict(params.logit_bias or ()))
        stops = params.stop_token_ids or ()
        for what, ids in (("the prompt", request.prompt.tolist()), ("logit_bias", biased), ("stop_token_ids", stops)):
            if (highest := max(ids, default=0)) >= vocab:
                raise RequestError(f"{what} has token id {highest}, and the vocabulary ends at {vocab - 1}; check the tokenizer")
        return CheckedPrompt(name, text, request.prompt, params, self._guide(params.structured_outputs))

    def _guide(self, asked: StructuredOutputs | None) -> Guide | None:
        if asked is None:
            return None
        if self._grammars is None:
            raise RequestError("structured outputs need to know how tokens are spelled, and this model has no tokenizer")
        platform = self.runner.platform
        if platform.contract < MASKS_SINCE:
            raise RequestError(f"platform {platform.name!r} was written for contract {platform.contract}, whose samplers know no masks; "
                               f"structured outputs need {MASKS_SINCE}")
        return self._grammars.guide(asked)

    def submit(
        self,
        prompt: CheckedPrompt,
        sink: Sink,
        *,
        stream: bool = False,
        priority: int = 0,
        tenant: str = "",
        salt: Salt | None = None,
    ) -> str:
        """Take a request; its id. Any thread."""
        arrival = time.monotonic()
        name = prompt.name
        judged = prompt.params.prompt_logprobs is not None
        if judged:  # tokens whose blocks were found would have no logits
            salt = replace(salt or Salt(), tenant=secrets.token_hex(16))
        requests = expand(
            name, prompt.tokens, prompt.params, eos_ids=self.eos_ids, max_model_len=self.max_model_len,
            priority=priority, tenant=tenant, salt=salt, arrival=arrival, seed=next(self._seeds), guide=prompt.guide,
        )
        completions = tuple(Completion(request, self.tokenizer, self.eos_ids) for request in requests)
        entry = _Entry(sink, stream, prompt.text, tuple(prompt.tokens.tolist()), requests, completions, arrival,
                       scores=PromptScores(len(prompt.tokens)) if judged else None)
        self._post(lambda: self._add(name, entry))
        return name

    def abort(self, request_id: str, sink: Sink | None = None) -> None:
        """End a request; its sink gets what it has, with the reason "abort". An unknown id is ignored: it may just have ended.

        sink: only the request that was submitted with it; another one may have the id by now.
        """
        with suppress(EngineError):  # closed: nothing runs
            self._post(lambda: self._abort(request_id, sink))

    def call(self, function: Callable[[], Any], timeout_seconds: float | None = None) -> Any:
        """Run a function on the engine's thread, between two steps, and give its result."""
        done, answer = threading.Event(), {}

        def run() -> None:
            try:
                answer["value"] = function()
            except BaseException as error:
                answer["error"] = error
            done.set()

        self._post(run)
        while not done.wait(0.2 if timeout_seconds is None else timeout_seconds):
            if timeout_seconds is not None or not self._thread.is_alive():
                raise EngineError("the engine did not answer; it was closed, or a step takes long")
        if "error" in answer:
            raise answer["error"]
        return answer["value"]

    def stats(self, timeout_seconds: float | None = None) -> EngineStats:
        """Taken between two steps. Raises `EngineError` where that takes longer than the timeout, or the engine is closed."""
        return self.call(self._stats, timeout_seconds)

    @property
    def closed(self) -> bool:
        """It takes no more requests: it was closed, or a step broke it."""
        return self._closing or self._broken is not None

    def close(self, *, wait: bool = True) -> None:
        """Abort what runs, and stop the thread. Idempotent, from any thread. wait: until it has stopped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self) -> None:
        """Close, because nobody can use it any more. The garbage collector may be on a thread that a step needs."""
        self.close(wait=threading.current_thread() is threading.main_thread())

    def _lose(self, error: InferplaneError) -> None:
        """A device is lost, perhaps between two steps."""
        def stop() -> None:
            raise error

        with suppress(EngineError):  # closed already
            self._post(stop)

    def _post(self, message: Callable[[], None]) -> None:
        with self._changed:
            if self._closing or self._broken:
                raise EngineError(f"the engine is closed{f': {self._broken}' if self._broken else ''}; make a new one")
            self._inbox.append(message)
            self._changed.notify()

    # Below here: the engine's own thread.

    def _loop(self) -> None:
        flight: deque[tuple[StepPlan, Pending]] = deque()
        try:
            while self._receive(wait=not flight and not self.scheduler.has_unfinished):
                started = time.perf_counter()
                plan = self.scheduler.plan(time.monotonic())
                if plan is not None:
                    flight.append((plan, self._submit(plan)))
                    self._steps, self._step_tokens = self._steps + 1, self._step_tokens + plan.token_count
                self._host_seconds += time.perf_counter() - started
                if flight and (plan is None or len(flight) == AHEAD):
                    self._settle(*flight.popleft())
                self._busy_seconds += time.perf_counter() - started
        except BaseException as error:
            self._broken = error
        finally:
            self._shut_down(flight)

    def _stats(self) -> EngineStats:
        scheduler = self.scheduler.stats()
        return EngineStats(
            scheduler.running, scheduler.waiting, self._steps, self._step_tokens, self._drawn_tokens,
            scheduler.preemptions, self._host_seconds, self._busy_seconds, self._failed_in_a_row, self.scheduler.kv_stats(),
        )

    def _submit(self, plan: StepPlan) -> Pending:
        try:
            return self.runner.submit(plan, self._drawn)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _receive(self, wait: bool) -> bool:
        """Take in what was posted. False: the engine is to stop."""
        with self._changed:
            while wait and not self._inbox and not self._closing:
                self._changed.wait()
            count, closing = len(self._inbox), self._closing
        for _ in range(count):
            self._inbox.popleft()()
        return not closing

    def _shut_down(self, flight: deque[tuple[StepPlan, Pending]]) -> None:
        with self._changed:
            self._closing = True
        while self._inbox:
            with suppress(Exception):
                self._inbox.popleft()()
        for _, pending in flight:
            try:
                pending.result()
            except Exception:
                break
        cause = f"a step failed: {self._broken}" if self._broken else "it was closed"
        for entry in self._entries.values():
            entry.sink(EngineError(f"the engine stopped before this request ended; {cause}"))
        self._entries.clear()
        self.runner.close()

    def _add(self, name: str, entry: _Entry) -> None:
        if name in self._entries:
            entry.sink(RequestError(f"request id {name!r} is already running; give each request an id of its own"))
            return
        now = time.monotonic()
        self._entries[name] = entry
        try:
            for request in entry.requests:
                self.scheduler.add(request, now)
        except InferplaneError as error:
            self.scheduler.abort(name, now)
            del self._entries[name]
            entry.sink(error)

    def _abort(self, name: str, sink: Sink | None) -> None:
        entry = self._entries.get(name)
        if entry is None or sink not in (None, entry.sink):
            return
        self._deliver_all(self.scheduler.abort(name, time.monotonic()))

    def _settle(self, plan: StepPlan, pending: Pending) -> None:
        """Wait for a step, and give each request what it gained. A step that fails ends its own requests only."""
        try:
            sampled = pending.result()
            tokens = {row: int(sampled.tokens[place]) for place, row in enumerate(plan.samples)}
        except Exception as error:
            if self.runner.failure is not None:
                raise self.runner.failure from error
            self._failed_in_a_row += 1
            self._fail(plan, error)
            return
        self._failed_in_a_row = 0
        started = time.perf_counter()
        places = {plan.rows[row].key: place for place, row in enumerate(plan.samples)}
        now = time.monotonic()
        for place, score in enumerate(scores(plan), len(plan.samples)):
            self._judge(score, sampled, place)
        for update in self.scheduler.update(plan, tokens, now):
            self._deliver(update, sampled, places.get(update.key, 0), now)
        self._host_seconds += time.perf_counter() - started

    def _judge(self, score: Score, sampled: Any, place: int) -> None:
        entry, asked = self._entries.get(score.request.request_id), score.request.params.prompt_logprobs
        if entry is not None and entry.scores is not None and asked is not None:
            entry.scores.put(score.position, logprobs_of(self.tokenizer, score.token, asked, sampled, place))

    def _deliver(self, update: Update, sampled: Any, place: int, now: float) -> None:
        entry = self._entries.get(update.request.request_id)
        if entry is None:
            return
        guide = update.request.guide
        if guide is not None and guide.error:
            self._refuse(entry, guide.error)
            return
        completion = entry.completions[update.request.sample_index]
        self._drawn_tokens += update.token is not None
        if update.token is None:
            completion.finish_reason = update.reason
        elif completion.push(update.token, update.reason, sampled, place) and update.reason is None:
            self._finish(entry, update.key, now)
        if update.reason is not None:
            entry.end(update)
        entry.first_token = entry.first_token if entry.first_token is not None or update.token is None else now
        self._tell(entry, now)

    def _finish(self, entry: _Entry, key: Key, now: float) -> None:
        """The engine saw a stop string, which the scheduler knows nothing of."""
        ended = self.scheduler.finish(key, "stop", now)
        if ended is not None:
            entry.end(ended)

    def _refuse(self, entry: _Entry, reason: str) -> None:
        """End a request with an error of its own."""
        name = entry.requests[0].request_id
        del self._entries[name]
        self.scheduler.abort(name, time.monotonic())
        entry.sink(RequestError(reason))

    def _deliver_all(self, updates: Sequence[Update]) -> None:
        now = time.monotonic()
        for update in updates:
            self._deliver(update, None, 0, now)

    def _tell(self, entry: _Entry, now: float) -> None:
        finished = entry.finished
        if finished:
            del self._entries[entry.requests[0].request_id]
        if finished or entry.stream:
            entry.sink(entry.output(now))

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        now = time.monotonic()
        for name in dict.fromkeys(update.request.request_id for update in self.scheduler.fail(plan, now)):
            entry = self._entries.pop(name, None)
            self.scheduler.abort(name, now)
            if entry is not None:
                wrapped = EngineError(f"step {plan.number} failed with {type(error).__name__}: {error}; its requests were dropped")
                wrapped.__cause__ = error
                entry.sink(wrapped)

    def _drawn(self, key: Key) -> Sequence[int]:
        return self._entries[key.request_id].completions[key.sample_index].token_ids
