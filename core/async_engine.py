"""AsyncEngine: the same engine for asyncio. Iterating gives growth; leaving the loop, or cancelling its task, aborts."""
from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self

from ..errors import InferplaneError
from .config import EngineConfig
from .engine import CheckedPrompt, Engine, EngineStats
from .env import Environment
from .kv.events import KVListener
from .kv.salt import Salt
from .loader import Source
from .output import RequestOutput
from .progress import bar
from .prompt import Prompt, parse_prompt
from .request import SamplingParams
from .start import Started, start

Answer = RequestOutput | InferplaneError
Growth = Literal["each", "latest", "end"]
"""What an iteration gives: an output for each step; the same, but what came while nobody looked in one; the whole at its end."""


class AsyncEngine:
    """`async for output in engine.generate(prompt, params): ...`, any number at once, on any event loop.

    Takes the same settings as `LLM`.
    """

    def __init__(self, model: str | None = None, *, source: Source | None = None, show_progress: bool = False, **settings: Any) -> None:
        self.config = EngineConfig.resolve({"model": model, **settings}, Environment.read())
        with bar(show_progress) as progress:
            self.started: Started = start(self.config, source=source, progress=progress)
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()
        weakref.finalize(self, self.started.engine.forget)

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
        growth: Growth = "each",
    ) -> AsyncGenerator[RequestOutput, None]:
        """The request's output as it grows; each output is whole, and its `delta` is what is new.

        Raises `RequestError` at once for what can never run; nothing runs before the first output is asked for.
        """
        parsed = parse_prompt(prompt)
        params = sampling_params or SamplingParams.from_kwargs(**self.started.defaults)
        checked = self.engine.check(parsed.content, params, request_id)
        return self._outputs(checked, growth, priority, tenant, parsed.salt)

    async def _outputs(
        self, checked: CheckedPrompt, growth: Growth, priority: int, tenant: str, salt: Salt | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        loop = asyncio.get_running_loop()
        answers = _Answers(self._mailboxes.setdefault(loop, _Mailbox(loop)), merged=growth == "latest")
        name = self.engine.submit(checked, answers.post, stream=growth != "end", priority=priority, tenant=tenant, salt=salt)
        ended = False
        try:
            while not ended:
                answer = await answers.get()
                ended = isinstance(answer, InferplaneError) or answer.finished
                if isinstance(answer, InferplaneError):
                    raise answer
                yield answer
        finally:
            if not ended:
                self.engine.abort(name, answers.post)

    async def abort(self, request_id: str) -> None:
        self.engine.abort(request_id)

    @property
    def engine(self) -> Engine:
        return self.started.engine

    def listen(self, listener: KVListener) -> None:
        """Tell it which blocks of prefixes can be found, from now on. It is called on the engine's thread."""
        self.engine.call(partial(setattr, self.engine.scheduler.memory, "listener", listener))

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def close(self) -> None:
        """Abort what runs and release the memory."""
        self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)


class _Mailbox:
    """From the engine's thread to one event loop, which is woken once for all that a step gave."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._woken = loop, False
        self._posted: deque[tuple[_Answers, Answer]] = deque()

    def post(self, to: _Answers, answer: Answer) -> None:
        """On the engine's thread."""
        self._posted.append((to, answer))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop was closed, so nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """On the loop. What is posted from here on wakes it again."""
        self._woken = False
        while self._posted:
            to, answer = self._posted.popleft()
            to.put(answer)


class _Answers:
    """One request's. merged: what nobody took yet is one output, so that a slow reader costs no memory."""

    def __init__(self, mailbox: _Mailbox, merged: bool) -> None:
        self._mailbox, self._merged = mailbox, merged
        self._arrived = asyncio.Event()
        self._waiting: deque[Answer] = deque()

    def post(self, answer: Answer) -> None:
        self._mailbox.post(self, answer)

    def put(self, answer: Answer) -> None:
        last = self._waiting[-1] if self._merged and self._waiting else None
        if isinstance(answer, RequestOutput) and isinstance(last, RequestOutput):
            self._waiting[-1] = answer.since(last)
        else:
            self._waiting.append(answer)
        self._arrived.set()

    async def get(self) -> Answer:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()
