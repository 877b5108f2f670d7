"""Server-sent events: what is told as it comes, https://html.spec.whatwg.org/multipage/server-sent-events.html."""
from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from starlette.types import Send

from .errors import ClientGone, refused
from .gate import Visit

KEEP_ALIVE_SECONDS = 15.0
"""Of silence, after which a client is told that it still waits rightly."""
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"),
)
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Event(NamedTuple):
    """One event; most APIs name none of theirs."""

    data: Mapping[str, Any]
    name: str = ""

    def encode(self) -> str:
        data = f"data: {ENCODE(self.data)}\n\n"
        return f"event: {self.name}\n{data}" if self.name else data


class EventStream:
    """Sends batches of events as one ASGI response, whose headers leave with the first.

    done: what ends it. send_timeout_seconds: for the client to take a batch.
    """

    def __init__(self, send: Send, visit: Visit, *, done: str, send_timeout_seconds: float) -> None:
        self._send, self._visit, self._done, self._timeout_seconds = send, visit, done, send_timeout_seconds
        self._started = False
        self._written = time.monotonic()
        self._writing = False

    async def run(self, batches: AsyncGenerator[Sequence[Event], None]) -> None:
        """An error before anything was sent is raised, so that it can be a status; a later one is told as an event."""
        pace = asyncio.create_task(self._keep_pace())
        try:
            async with aclosing(batches):
                async for batch in batches:
                    if batch:
                        await self._write("".join([event.encode() for event in batch]))
            await self._write(self._done, last=True)
        except (Exception, asyncio.CancelledError) as error:
            reason = self._visit.reason() if isinstance(error, asyncio.CancelledError) else error
            if reason is None or not self._started or isinstance(reason, ClientGone):
                raise
            await self._write(Event(refused(reason).body()).encode() + self._done, last=True)
        finally:
            pace.cancel()

    async def _keep_pace(self) -> None:
        """Beside the writing, so that no piece pays for a timer: a silent model is covered for, a deaf client is left."""
        while True:
            await asyncio.sleep(min(KEEP_ALIVE_SECONDS, self._timeout_seconds) / 2)
            silent_seconds = time.monotonic() - self._written
            if self._writing and silent_seconds > self._timeout_seconds:
                self._visit.end(ClientGone())
            elif not self._writing and silent_seconds > KEEP_ALIVE_SECONDS:
                await self._write(": waiting\n\n")

    async def _write(self, text: str, last: bool = False) -> None:
        self._written, self._writing = time.monotonic(), True
        try:
            if not self._started:
                self._started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": not last})
        except OSError:
            raise ClientGone from None
        finally:
            self._writing = False
