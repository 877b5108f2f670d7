"""The server process: a port, signals, draining, and the watch over the engine."""
from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ..errors import ConfigError
from .config import ServeConfig
from .connection import Connection
from .errors import Refused
from .service import Service
from .watch import fail_all, pulse, until_broken

LOG = logging.getLogger("inferplane.serving")
LEAVE_SECONDS = 2.0
"""For the last bytes to leave once no request is inside."""
MOST_LEAVE_SECONDS = 8.0
"""After that the process ends, whatever still holds it."""
LOG_SECONDS = 1.0
"""For the last line."""
BACKLOG = 2048


def bind(config: ServeConfig) -> socket.socket:
    """The port, taken before a model is loaded; nobody can connect before the server listens. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host {config.host!r} cannot be listened on: {error.strerror}. Name one of this machine's addresses.") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        taken = error.errno == errno.EADDRINUSE
        remedy = "Something listens there already: stop it, or choose another --port (0: any)." if taken else "Choose another one."
        raise ConfigError(f"port {config.port} on {config.host!r} cannot be taken: {error.strerror}. {remedy}") from None
    return made


def url(config: ServeConfig, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"{config.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: Starlette, service: Service, bound: socket.socket, ready: Callable[[], None]) -> int:
    """Serve until SIGTERM, SIGINT or the engine's end. The exit code: 0, or 1 where the engine was the reason.

    ready: called once clients are answered.
    """
    config = service.config
    server = Server(uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", backlog=BACKLOG,
        timeout_graceful_shutdown=int(LEAVE_SECONDS), http=Connection, ws="none",
        ssl_certfile=config.tls_cert, ssl_keyfile=config.tls_key, proxy_headers=False,
    ), service, ready)
    server.run([bound])
    return 1 if server.broken else 0


def end_at_latest(seconds: float) -> None:
    """A step that hangs holds threads for which an orderly end would wait without end."""
    def end() -> None:
        threading.Timer(LOG_SECONDS, os._exit, [1]).start()  # who reads the log may hang as well
        LOG.critical("the process did not end in time; it is ended now")
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


class Server(uvicorn.Server):
    """uvicorn's, which drains before it stops listening, so that a new request is told so instead of finding no one."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self._ready = service, ready
        self.broken = False
        self._signals = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._start(self._watch())
        self._start(pulse(self.service.config.step_timeout_seconds + MOST_LEAVE_SECONDS))
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets running requests end; the second ends them."""
        assert self._loop is not None
        self._signals += 1
        name, again = signal.Signals(sig).name, self._signals > 1
        self._loop.call_soon_threadsafe(lambda: self._start(self._drain(name, 0.0 if again else self.service.config.drain_seconds)))

    async def _drain(self, why: str, seconds: float) -> None:
        gate = self.service.gate
        end_at_latest(seconds + MOST_LEAVE_SECONDS)
        LOG.warning("%s: %d requests are left to end within %g s, and new ones are refused", why, len(gate), seconds)
        going = Refused(503, "the server is shutting down; ask another one, or try again later", code="shutting_down",
                        headers={"retry-after": str(int(seconds) + 1), "connection": "close"})
        gate.close(going)
        if not await gate.emptied(seconds):
            LOG.warning("%d requests did not end in time", len(gate))
            gate.clear(going)
            await gate.emptied(LEAVE_SECONDS)
        self.should_exit = True

    async def _watch(self) -> None:
        why = await until_broken(self.service)
        self.broken = True
        end_at_latest(MOST_LEAVE_SECONDS)
        fail_all(self.service, why)
        await self.service.gate.emptied(LEAVE_SECONDS)
        self.should_exit = True

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
