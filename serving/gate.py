"""The gate: who may come in, how many at once, and how those inside are ended before their time."""
from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

from .errors import ClientGone, Refused
from .rates import Rates

LONGEST_RETRY_SECONDS = 60


@dataclass(eq=False)
class Visit:
    """One request inside. Whoever has a reason ends it: its task is cancelled, and the reason becomes its answer."""

    task: asyncio.Task[object]
    cause: Exception | None = field(default=None, init=False)

    def end(self, cause: Exception) -> None:
        if self.cause is None:
            self.cause = cause
            self.task.cancel()

    def reason(self) -> Exception | None:
        """Asked by the task when it was cancelled: why, if it was by `end`. Then it goes on, to say so."""
        if self.cause is not None and self.task.cancelling():
            self.task.uncancel()
        return self.cause


class Gate:
    """Counts sequences: a prompt's `n` answers each take a place.

    running: that the engine computes at once. queue: that may wait. per_key: of one key; None: no limit. rates: of one key in a minute.
    """

    def __init__(self, *, running: int, queue: int, per_key: int | None = None, rates: Rates | None = None) -> None:
        self.rates = rates or Rates(None, None)
        self.running, self.room, self.per_key = running, running + queue, per_key
        self.sequences = 0
        self.refusals: Counter[str] = Counter()
        """By their code."""
        self.closed: Refused | None = None
        self._by_key: Counter[str] = Counter()
        self._visits: set[Visit] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._mean_seconds = 1.0

    def __len__(self) -> int:
        return len(self._visits)

    @asynccontextmanager
    async def enter(self, key: str, sequences: int, timeout_seconds: float) -> AsyncIterator[Visit]:
        """Raises `Refused` for who must stay outside, and for who did not end in time."""
        self._admit(key, sequences)
        task = asyncio.current_task()
        assert task is not None
        visit, began = Visit(task), time.monotonic()
        late = Refused(504, f"the request did not end within {timeout_seconds:g} s", code="request_timeout")
        timer = asyncio.get_running_loop().call_later(timeout_seconds, visit.end, late)
        self._visits.add(visit)
        self._empty.clear()
        self.sequences += sequences
        self._by_key[key] += sequences
        try:
            yield visit
            self._mean_seconds += 0.1 * (time.monotonic() - began - self._mean_seconds)
        except asyncio.CancelledError:
            reason = visit.reason()
            if reason is None:
                raise
            raise reason from None
        finally:
            timer.cancel()
            self._visits.discard(visit)
            self.sequences -= sequences
            self._by_key[key] -= sequences
            if not self._by_key[key]:
                del self._by_key[key]
            if not self._visits:
                self._empty.set()

    def close(self, cause: Refused) -> None:
        """Nobody else comes in; who is inside stays."""
        self.closed = self.closed or cause

    def clear(self, cause: Exception) -> None:
        """Whoever is inside ends now."""
        for visit in tuple(self._visits):
            visit.end(cause)

    async def emptied(self, timeout_seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_seconds)
        except TimeoutError:
            return False
        return True

    def _admit(self, key: str, sequences: int) -> None:
        if self.closed:
            self._refuse(self.closed)
        if sequences > self.room or sequences > (self.per_key or self.room):
            most = min(self.room, self.per_key or self.room)
            self._refuse(Refused(400, f"{sequences} answers were asked for at once; at most {most} are given. Ask for fewer.",
                                 code="too_many_sequences", param="n"))
        if self.sequences + sequences > self.room:
            self._refuse(Refused(429, "too many requests are waiting; try again later", code="queue_full", headers=self._later()))
        if self.per_key is not None and self._by_key[key] + sequences > self.per_key:
            self._refuse(Refused(429, f"this API key has {self._by_key[key]} answers under way, and at most {self.per_key} are "
                                 "given at once; try again later", code="rate_limit_exceeded", headers=self._later()))
        try:
            self.rates.enter(key)
        except Refused as refusal:
            self._refuse(refusal)

    def _refuse(self, refusal: Refused) -> None:
        self.refusals[refusal.code or ""] += 1
        raise refusal

    def _later(self) -> dict[str, str]:
        """When a place should be free: those who are inside leave at the pace of the last ones."""
        seconds = self._mean_seconds * max(1, len(self._visits)) / self.running
        return {"retry-after": str(min(LONGEST_RETRY_SECONDS, max(1, math.ceil(seconds))))}


@asynccontextmanager
async def while_connected(visit: Visit, receive: Receive) -> AsyncIterator[None]:
    """Ends the visit when its client leaves. The body must have been read."""
    watcher = asyncio.ensure_future(_left(receive))
    watcher.add_done_callback(lambda done: None if done.cancelled() else visit.end(ClientGone()))
    try:
        yield
    finally:
        watcher.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
