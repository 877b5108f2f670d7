"""One request from its body to the last byte of its answer, the same for every API that draws tokens."""
from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..core.output import RequestOutput
from ..core.request import SamplingParams
from .audit import Tally
from .body import read_body
from .errors import ClientGone, Refused
from .gate import while_connected
from .meter import Meter
from .protocol.base import Asked, parse
from .service import Service
from .stream import ENCODE, Event, EventStream

INLINE_BYTES = 16 << 10
"""A body up to this size is made ready on the event loop; a larger one, and any grammar, on a thread, so that nobody waits for it."""


@dataclass(frozen=True)
class Ask:
    """What the engine is asked: each prompt, `params.n` times."""

    prompts: tuple[Sequence[int], ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None


class Reply(ABC):
    """How an API words one answer, as it grows or as a whole. `place` counts the prompts."""

    ask: Ask
    streamed: bool
    done = "data: [DONE]\n\n"

    @abstractmethod
    def grew(self, place: int, output: RequestOutput) -> Sequence[Event]: ...

    def ended(self) -> Sequence[Event]:
        return ()

    @abstractmethod
    def whole(self, outputs: Sequence[RequestOutput]) -> Mapping[str, Any]: ...


F = TypeVar("F", bound=Asked)
T = TypeVar("T")


class Answering(Generic[F]):
    """The ASGI application of one API: `form` is what it takes, `reply` makes its answer from one."""

    def __init__(self, service: Service, form: type[F], reply: Callable[[Service, F], Reply]) -> None:
        self.service, self.form, self.reply = service, form, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            scope["state"]["gone"] = True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, key = self.service, scope["state"]["key"]
        body = await read_body(Request(scope, receive), service.config)
        form = parse(self.form, body)
        service.check_model(form.model)
        tally: Tally = scope["state"]["tally"]
        tally.model, tally.body = form.model or service.names[0], body if service.audit and service.audit.prompts else b""
        async with (
            service.gate.enter(key, form.sequences, service.config.request_timeout_seconds) as visit,
            while_connected(visit, receive),
        ):
            long = len(body) > INLINE_BYTES
            reply = await _done(long, partial(self.reply, service, form))
            compiled = reply.ask.params.structured_outputs is not None
            growths = await _done(long or compiled, lambda: [self._growth(reply, prompt, key, tally) for prompt in reply.ask.prompts])
            if reply.streamed:
                stream = EventStream(send, visit, done=reply.done, send_timeout_seconds=service.config.send_timeout_seconds)
                await stream.run(_events(reply, growths))
            else:
                content = ENCODE(reply.whole(await _all(growths)))
                await Response(content, media_type="application/json")(scope, receive, send)

    def _growth(self, reply: Reply, prompt: Sequence[int], key: str, tally: Tally) -> AsyncGenerator[RequestOutput, None]:
        """Raises for a prompt that can never run, before anything runs."""
        ask = reply.ask
        asked = {"prompt_token_ids": prompt, "cache_salt": ask.cache_salt}
        outputs = self.service.engine.generate(
            asked, ask.params, priority=ask.priority, tenant=key, growth="latest" if reply.streamed else "end",
        )
        meter = Meter(self.service.metrics, ask.params, streamed=reply.streamed)

        def end(latest: RequestOutput) -> None:
            self.service.gate.rates.used(key, tally.add(latest))

        return _metered(outputs, meter, end)


async def _done(aside: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if aside else work()


async def _metered(
    outputs: AsyncGenerator[RequestOutput, None], meter: Meter, end: Callable[[RequestOutput], None],
) -> AsyncGenerator[RequestOutput, None]:
    """end: told the last output, also of a request that was ended early."""
    output: RequestOutput | None = None
    try:
        async with aclosing(outputs):
            async for output in outputs:
                meter.grew(output)
                if any(choice.finish_reason == "abort" for choice in output.outputs):
                    raise Refused(500, "the request was ended by the server", code="aborted")
                yield output
    finally:
        meter.close()
        if output is not None:
            end(output)


async def _last(growth: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    async with aclosing(growth):
        return [output async for output in growth][-1]


async def _all(growths: Sequence[AsyncGenerator[RequestOutput, None]]) -> list[RequestOutput]:
    """The first error ends them all."""
    tasks = [asyncio.create_task(_last(growth)) for growth in growths]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)


async def _events(reply: Reply, growths: Sequence[AsyncGenerator[RequestOutput, None]]) -> AsyncGenerator[Sequence[Event], None]:
    if len(growths) == 1:
        async with aclosing(growths[0]) as growth:
            async for output in growth:
                yield reply.grew(0, output)
    else:
        async with aclosing(_together(growths)) as outputs:
            async for place, output in outputs:
                yield reply.grew(place, output)
    yield reply.ended()


async def _together(growths: Sequence[AsyncGenerator[RequestOutput, None]]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Whatever grows next, with its place; the first error ends them all."""
    nexts: dict[asyncio.Future[RequestOutput | None], int] = {}

    def follow(place: int) -> None:
        nexts[asyncio.ensure_future(anext(growths[place], None))] = place

    for place in range(len(growths)):
        follow(place)
    try:
        while nexts:
            done, _ = await asyncio.wait(nexts, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                output, place = task.result(), nexts.pop(task)
                if output is not None:
                    yield place, output
                    follow(place)
    finally:
        await _ended(nexts)
        for growth in growths:
            await growth.aclose()


async def _ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
