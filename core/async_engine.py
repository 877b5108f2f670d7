"""AsyncEngine: the same engine for asyncio. Iterating gives growth; leaving the loop, or cancelling its task, aborts."""
from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, Self

from ..errors import InferplaneError
from .config import EngineConfig
from .engine import Engine, EngineStats
from .env import Environment
from .loader import Source
from .output import RequestOutput
from .prompt import Prompt, parse_prompt
from .request import SamplingParams
from .start import Started, start

Answer = RequestOutput | InferplaneError


class AsyncEngine:
    """`async for output in engine.generate(prompt, params): ...`, any number at once, on any event loop.

    Takes the same settings as `LLM`.
    """

    def __init__(self, model: str | None = None, *, source: Source | None = None, **settings: Any) -> None:
        self.config = EngineConfig.resolve({"model": model, **settings}, Environment.read())
        self.started: Started = start(self.config, source=source)
        weakref.finalize(self, self.started.engine.forget)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """The request's output as it grows; each output is whole, and its `delta` is what is new."""
        parsed = parse_prompt(prompt)
        params = sampling_params or SamplingParams.from_kwargs(**self.started.defaults)
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        checked, sink = self.engine.check(parsed.content, params, request_id), partial(_post, loop, answers)
        name = self.engine.submit(checked, sink, stream=True, priority=priority, tenant=tenant, salt=parsed.salt)
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
                self.engine.abort(name, sink)

    async def abort(self, request_id: str) -> None:
        self.engine.abort(request_id)

    @property
    def engine(self) -> Engine:
        return self.started.engine

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def close(self) -> None:
        """Abort what runs and release the memory."""
        self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)


def _post(loop: asyncio.AbstractEventLoop, answers: asyncio.Queue[Answer], answer: Answer) -> None:
    with suppress(RuntimeError):  # the loop was closed, so nobody waits
        loop.call_soon_threadsafe(answers.put_nowait, answer)
