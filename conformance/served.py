"""An engine over a tiny random model on the rig's platform, and each answer computed alone, without an engine."""
from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.engine import Engine
from ..core.kv.layout import Shape, layout_for_tokens
from ..core.kv.prefix import Digest, sha256
from ..core.kv.salt import Salt
from ..core.loader import Loaded
from ..core.output import Completion, CompletionOutput, RequestOutput
from ..core.request import SamplingParams, expand
from ..core.runner import Runner
from ..core.scheduler.config import SchedulerConfig
from ..core.scheduler.scheduler import Scheduler
from ..errors import EngineError, InferplaneError
from ..ops import DTYPES
from .case import Failed
from .models import CONTEXT, MODELS, Array, RandomSource, load_on
from .rig import Rig

PATIENCE_SECONDS = 60.0
NEAR = 1e-4
"""How far a log-probability in float32 may lie from another computation's; kernels that are batch-invariant keep its bits."""
EOS = frozenset({3})
ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Setting:
    """How an engine is set up. sequences: as many of the longest kind fit into the KV memory at once."""

    model: str = "full"
    dtype: str = "float32"
    budget: int = 512
    rows: int = 8
    long_prefill: int | None = None
    """Tokens of one prompt that a step takes at most."""
    caching: bool = False
    sequences: int = 8
    block_tokens: int | None = None
    kv_dtype: str | None = None
    deterministic: bool = False
    key_bits: int | None = None
    """Prefix keys that take only so many bits of theirs: they collide."""


class Watched:
    """A runner that counts what it was handed, and fails steps on demand: in `submit`, or when their result is asked for."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.poison: int | None = None
        """Steps that compute this token fail."""
        self.at_once = False
        self.split_rows = self.pending_rows = 0
        """Rows with a part of their prompt; rows whose token the device had yet to draw."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def submit(self, plan: Any, drawn: Any) -> Any:
        self.pending_rows += sum(row.pending for row in plan.rows)
        self.split_rows += sum(not row.sample for row in plan.rows)
        bad = self.poison is not None and any((row.tokens == self.poison).any() for row in plan.rows)
        if bad and self.at_once:
            raise ArithmeticError(POISONED)
        pending = self.runner.submit(plan, drawn)
        return _Poisoned(pending) if bad else pending


POISONED = "planted by the conformance suite"


class _Poisoned:
    def __init__(self, pending: Any) -> None:
        self.pending = pending

    def result(self) -> Any:
        self.pending.result()
        raise ArithmeticError(POISONED)


class Asked:
    """A request under way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answers: queue.SimpleQueue[RequestOutput | InferplaneError] = queue.SimpleQueue()

    def next(self) -> RequestOutput:
        """The next growth, or the end. Raises what the engine answered instead, `Failed` when nothing comes."""
        try:
            answer = self.answers.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise Failed(f"{self.name}: no answer within {PATIENCE_SECONDS:g} s") from None
        if isinstance(answer, InferplaneError):
            raise answer
        return answer

    def end(self) -> RequestOutput:
        while not (answer := self.next()).finished:
            pass
        return answer


class Served:
    """A running engine, and how it is asked."""

    def __init__(self, loaded: Loaded, setting: Setting) -> None:
        self.loaded, self.setting = loaded, setting
        groups = loaded.model.states
        shape = Shape(setting.rows, CONTEXT, setting.budget)
        layout = layout_for_tokens(groups, setting.sequences * CONTEXT, shape, ITEMSIZE)
        config = SchedulerConfig(
            max_model_len=CONTEXT, max_num_seqs=setting.rows, max_num_batched_tokens=setting.budget, enable_prefix_caching=setting.caching,
            long_prefill_tokens=setting.long_prefill,
        )
        self.scheduler = Scheduler(config, groups, layout.blocks, digest=_shortened(setting.key_bits))
        self.runner = Watched(Runner(loaded, blocks=layout.blocks, slots=setting.rows))
        runner: Any = self.runner
        self.engine = Engine(self.scheduler, runner, None, eos_ids=EOS, max_model_len=CONTEXT, seed=1)

    def ask(self, prompt: Sequence[int], params: SamplingParams, *, stream: bool = False, salt: Salt | None = None) -> Asked:
        checked = self.engine.check(prompt, params)
        asked = Asked(checked.name)
        self.engine.submit(checked, asked.answers.put, stream=stream, salt=salt)
        return asked

    def together(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """All answers; the requests arrive before the engine plans its next step."""
        with self.standing_still():
            asked = [self.ask(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        return [one.end() for one in asked]

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """The engine's thread waits: what happens meanwhile, it takes in at once."""
        gate, reached = threading.Event(), threading.Event()

        def stand() -> None:
            reached.set()
            gate.wait(PATIENCE_SECONDS)

        with suppress(EngineError):  # not answered at once: it stands still
            self.engine.call(stand, timeout_seconds=0.0)
        try:
            if not reached.wait(PATIENCE_SECONDS):
                raise Failed("the engine does not come back from a step")
            yield
        finally:
            gate.set()

    def expect_idle(self) -> None:
        """Nothing runs, nothing waits, and no block is held."""
        stats = self.engine.stats()
        if (stats.running, stats.waiting, *stats.kv.held_blocks) != (0, 0, *(0 for _ in stats.kv.held_blocks)):
            raise Failed(
                f"after the last answer {stats.running} requests run, {stats.waiting} wait, and {stats.kv.held_blocks} blocks are held",
            )


def _shortened(bits: int | None) -> Digest:
    """SHA-256, or its first bits."""
    return sha256 if bits is None else lambda data: bytes([sha256(data)[0] % 2**bits])


@contextmanager
def serve(rig: Rig, setting: Setting, seed: int) -> Iterator[Served]:
    """Started, idle at the end, and closed."""
    made = start(rig, setting, seed)
    try:
        yield made
        made.expect_idle()
    finally:
        made.engine.close()


def start(rig: Rig, setting: Setting, seed: int) -> Served:
    """On a platform of its own, which the engine closes when it is closed."""
    platform, source = rig.reopen(), RandomSource(MODELS[setting.model], seed, setting.dtype)
    try:
        return Served(load_on(
            rig, source, platform=platform, dtype=setting.dtype, block_tokens=setting.block_tokens, deterministic=setting.deterministic,
            kv_dtype=setting.kv_dtype,
        ), setting)
    except BaseException:
        platform.close()
        raise


class Alone:
    """Each request by itself: one step after the other, each waited for, nothing shared, no chunk, no engine."""

    def __init__(self, rig: Rig, setting: Setting, seed: int) -> None:
        source = RandomSource(MODELS[setting.model], seed, setting.dtype)
        self.loaded = load_on(rig, source, dtype=setting.dtype, deterministic=setting.deterministic, kv_dtype=setting.kv_dtype)
        self.bits = self.loaded.resolution.batch_invariant

    @property
    def kernels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(choice.name for choice in self.loaded.resolution))

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> tuple[CompletionOutput, ...]:
        """One output for each of the request's `n` samples."""
        requests = expand("alone", prompt, params, eos_ids=EOS, max_model_len=CONTEXT)
        return tuple(self._one(request) for request in requests)

    def _one(self, request: Any) -> CompletionOutput:
        groups = self.loaded.model.states
        blocks = [2 + CONTEXT // group.block_tokens for group in groups]
        config = SchedulerConfig(max_model_len=CONTEXT, max_num_seqs=1, max_num_batched_tokens=CONTEXT, enable_prefix_caching=False)
        scheduler, runner = Scheduler(config, groups, blocks), Runner(self.loaded, blocks=blocks, slots=1)
        completion = Completion(request, None, EOS)
        scheduler.add(request, 0.0)
        while (plan := scheduler.plan(0.0)) is not None:
            sampled = runner.submit(plan, lambda _: completion.token_ids).result()
            tokens = {row: int(sampled.tokens[place]) for place, row in enumerate(plan.samples)}
            for update in scheduler.update(plan, tokens, 0.0):
                assert update.token is not None
                completion.push(update.token, update.reason, sampled, 0)
        return completion.output()

    def expect(self, what: str, found: RequestOutput, params: SamplingParams, *, whole: bool = True) -> None:
        """Raise `Failed` unless `found` is what its prompt gives alone. whole: otherwise an abort may have cut it short."""
        for mine, right in zip(found.outputs, self.answer(found.prompt_token_ids, params), strict=True):
            name = what if len(found.outputs) == 1 else f"{what}, sample {mine.index}"
            self._compare(name, mine, right, whole)

    def _compare(self, what: str, mine: CompletionOutput, right: CompletionOutput, whole: bool) -> None:
        count = len(mine.token_ids)
        if mine.token_ids != right.token_ids[:count]:
            raise Failed(f"{what}: tokens {list(mine.token_ids)} instead of {list(right.token_ids)}")
        if whole and (count, mine.finish_reason, mine.stop_reason) != (len(right.token_ids), right.finish_reason, right.stop_reason):
            raise Failed(
                f"{what}: ended with {mine.finish_reason} after {count} tokens instead of {right.finish_reason} after "
                f"{len(right.token_ids)}",
            )
        for step, (one, other) in enumerate(zip(mine.logprobs or (), right.logprobs or (), strict=False)):
            left, wanted = distribution(one), distribution(other)
            if self.bits and left.tobytes() != wanted.tobytes():
                raise Failed(
                    f"{what}: log-probabilities of token {step} differ in {int((left != wanted).sum())} of {len(left)} values, "
                    f"by at most {np.abs(left - wanted).max():.3g}; every kernel declares batch_invariant"
                )
            if not np.allclose(left, wanted, rtol=0, atol=NEAR):
                raise Failed(f"{what}: a log-probability of token {step} is off by {np.abs(left - wanted).max():.3g}, more than {NEAR:g}")


def distribution(step: dict[int, Any]) -> Array:
    """[vocab] float32: one drawn token's log-probabilities, of the whole vocabulary."""
    made = np.full(len(step), np.nan, np.float32)
    made[list(step)] = [entry.logprob for entry in step.values()]
    return made


def everything(params: SamplingParams) -> SamplingParams:
    """The same request, telling the log-probabilities of the whole vocabulary."""
    return replace(params, logprobs=-1)

