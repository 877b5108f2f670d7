"""A load on a server, from settings to a record: who asks when, until when, and what came of it."""
from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError, InferplaneError
from .machine import describe_machine, describe_versions, today
from .serve_client import Client, Trip
from .serve_figures import Slo, figures
from .serve_load import Conversation, Load
from .serve_server import OwnServer

FORMAT = 1
"""Of this kind's record. Grows when a reader of the old one would be misled."""
TOLD_SECONDS = 0.25
AFTER_ERROR_SECONDS = 0.5
"""That a client in a closed loop waits, so that a server that refuses everything is not hammered."""
WARM_UP_TOKENS = 4


@dataclass
class Progress:
    """How far a run is."""

    began: float
    trips: list[Trip] = field(default_factory=list)
    running: int = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Target:
    """Whom to load. ids: whether it can tell the ids of its answers."""

    url: str
    key: str | None = None
    model: str | None = None
    timeout_seconds: float = 600.0
    ids: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix("/v1"))
        if not self.url.startswith(("http://", "https://")) or len(self.url.split("/")) > 3 or not self.url.split("/")[2]:
            raise ConfigError(f"--url {self.url!r} is no address of a server. Write it like http://127.0.0.1:8000.")
        if not 0 < self.timeout_seconds < float("inf"):
            raise ConfigError(f"--timeout must be above 0 seconds; found {self.timeout_seconds:g}.")


def run_serve(load: Load, slo: Slo, target: Target, tell: Tell, own: OwnServer | None = None) -> dict[str, Any]:
    """The record. An interrupt ends the run early, and what was measured until then is reported. Raises `ConfigError`."""
    return asyncio.run(_run(load, slo, target, tell, own))


async def _run(load: Load, slo: Slo, target: Target, tell: Tell, own: OwnServer | None) -> dict[str, Any]:
    async with Client(
        target.url, key=target.key, model=target.model, timeout_seconds=target.timeout_seconds, ids=target.ids,
    ) as client:
        model = await client.meet()
        if client.max_model_len is not None and load.longest_tokens > client.max_model_len:
            raise ConfigError(f"the load's longest request has {load.longest_tokens} tokens, its answer included; {model!r} takes at most "
                              f"{client.max_model_len}. Ask for less, or start the server with a larger --max-model-len.")
        version = await _version(client)
        await _warm_up(client, load)
        cpu, own_cpu = time.process_time(), own.cpu_seconds() if own else 0.0
        run = Run(client, load, tell)
        interrupted = await run.to_end()
        seconds = time.perf_counter() - run.progress.began
        result = figures(run.progress.trips, slo, run.progress.began, run.progress.began + seconds)
        client_cpu = time.process_time() - cpu
        server_cpu = own.cpu_seconds() - own_cpu if own and own.process.poll() is None else None
    return {
        "format": FORMAT, "kind": "serve", "date": today(), "machine": describe_machine(), "versions": describe_versions(),
        "server": {"model": model, "version": version, "own": own is not None},
        "load": asdict(load) | {"described": load.describe()},
        "interrupted": interrupted,
        "results": [result | {
            "client_cpu_seconds": client_cpu, "client_cores": client_cpu / seconds, "server_cpu_seconds": server_cpu,
        }],
    }


class Run:
    """One run of a load. Whoever sends takes a turn from what is left."""

    def __init__(self, client: Client, load: Load, tell: Tell) -> None:
        self._client, self._load, self._tell = client, load, tell
        self.progress = Progress(time.perf_counter())
        self._place = 0
        self._over = asyncio.Event()

    async def to_end(self) -> bool:
        """Whether it was interrupted."""
        teller = asyncio.create_task(self._keep_telling())
        sender = asyncio.create_task(self._open() if self._load.rate is not None else self._closed())
        try:
            async with _interrupt() as interrupt:
                await asyncio.wait((sender, interrupt), return_when=asyncio.FIRST_COMPLETED)
                interrupted = not sender.done()
        finally:
            self._over.set()
            for task in (sender, teller):
                task.cancel()
            ended = await asyncio.gather(sender, teller, return_exceptions=True)
            self._tell(self.progress)
        if isinstance(ended[0], Exception):
            raise ended[0]
        return interrupted

    async def _open(self) -> None:
        """Conversations begin at random times, however many are under way."""
        rng = np.random.default_rng(self._load.seed)
        due = self.progress.began
        assert self._load.rate is not None
        async with asyncio.TaskGroup() as group:
            while True:
                due += rng.exponential(1 / self._load.rate)
                await _until(due)
                if not self._more():
                    return
                group.create_task(self._converse(due))

    async def _closed(self) -> None:
        assert self._load.concurrency is not None
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.concurrency):
                group.create_task(self._keep_conversing())

    async def _keep_conversing(self) -> None:
        while self._more():
            await self._converse(time.perf_counter())

    async def _converse(self, due: float) -> None:
        conversation = Conversation(self._load, self._place)
        self._place += 1
        for turn in range(self._load.turns):
            if turn:
                due = time.perf_counter() + conversation.think_seconds()
                await _until(due)
            if not self._more():
                return
            prompt, tokens = conversation.ask()
            trip = Trip(due)
            self.progress.trips.append(trip)
            self.progress.running += 1
            try:
                await self._client.ask(trip, prompt, tokens)
            finally:
                self.progress.running -= 1
            if trip.error is not None:
                await asyncio.sleep(AFTER_ERROR_SECONDS if self._load.rate is None else 0)
                return
            conversation.hear(trip.ids)

    def _more(self) -> bool:
        most, seconds = self._load.most_requests, self._load.duration_seconds
        return (most is None or len(self.progress.trips) < most) and (seconds is None or self.progress.seconds < seconds)

    async def _keep_telling(self) -> None:
        while not self._over.is_set():
            self._tell(self.progress)
            await asyncio.sleep(TOLD_SECONDS)


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _warm_up(client: Client, load: Load) -> None:
    """One request as those of the load, that nobody else's time pays for; what is refused here would be refused each time."""
    prompt, tokens = Conversation(load, -1).ask()
    trip = Trip(time.perf_counter())
    await client.ask(trip, prompt, min(tokens, WARM_UP_TOKENS))
    if trip.error is not None:
        remedy = "Its log tells more" if trip.error.startswith(("5", "stream", "connection", "timeout")) else \
            "Ask for lengths, ids (--vocab) and settings that it takes"
        raise ConfigError(f"{client.url} did not answer a request like those of the load ({len(prompt)} tokens in): {trip.error}"
                          f"{': ' + trip.said if trip.said else ''}. {remedy}.")


async def _version(client: Client) -> str | None:
    """Servers say it at /version, some of them."""
    with suppress(ValueError, LookupError, TypeError, InferplaneError):
        answer = await client.get("/version")
        return str(answer.json()["version"]) if answer.status_code == 200 else None
    return None


@asynccontextmanager
async def _interrupt() -> AsyncIterator[asyncio.Future[None]]:
    """A future that is done when somebody interrupts; a second interrupt goes the usual way."""
    loop = asyncio.get_running_loop()
    pressed: asyncio.Future[None] = loop.create_future()

    def press() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        if not pressed.done():
            pressed.set_result(None)

    with suppress(NotImplementedError, ValueError, RuntimeError):
        loop.add_signal_handler(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        with suppress(NotImplementedError, ValueError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)
        pressed.cancel()
