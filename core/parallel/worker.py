"""A worker's process: it loads its part of the model, and runs each step that rank 0 sends."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from ...errors import InferplaneError
from ..loader import load
from ..runner import Runner
from .messages import Allocated, Blocks, Failure, Job, Opened, Prepared, Read, Write

CAUSE_SECONDS = 0.5
ALIVE_SECONDS = 1.0
"""How often a worker looks whether its parent still is the one that started it."""


def main(connection: Connection) -> NoReturn:
    """Ends when rank 0 says so, when rank 0 is gone, or with a failure that rank 0 is told.

    By `os._exit`: a thread that waits for another device would keep the interpreter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox.put, os.getppid()), daemon=True).start()
    try:
        _serve(connection, inbox.get)
    except BaseException as error:
        _fail(connection, error)
    _leave(0)


def _serve(connection: Connection, receive: Callable[[], Any]) -> None:
    job: Job = receive()
    platform = job.found.open(job.world.rank)
    connection.send(Opened())
    receive()
    collectives = platform.collectives(job.world)
    packs = [pack.load(platform.name) for pack in job.packs]
    loaded = load(job.source, platform, job.options, packs, world=job.world, collectives=collectives)
    connection.send(Prepared(platform.memory().free))
    sizes = receive()
    runner = Runner(loaded, blocks=sizes.blocks, slots=sizes.slots)
    connection.send(Allocated())
    started: SimpleQueue[Any] = SimpleQueue()
    settling = threading.Thread(target=_settle, args=(connection, started.get), daemon=True)
    settling.start()
    while (message := receive()) is not None:
        if isinstance(message, Read):
            connection.send(Blocks(platform.read_blocks(runner.state, message.group, message.blocks)))
        elif isinstance(message, Write):
            platform.write_blocks(runner.state, message.group, message.blocks, message.arrays)
        else:
            started.put(runner.start(message))
    started.put(None)
    settling.join()
    collectives.close()
    runner.close()


def _settle(connection: Connection, started: Callable[[], Any]) -> None:
    """Wait for each step, so that one that failed is told. Its result is rank 0's to hand out."""
    try:
        while (pending := started()) is not None:
            pending.result()
    except BaseException as error:
        _fail(connection, error)


def _receive(connection: Connection, put: Callable[[Any], None], parent: int) -> None:
    try:
        while True:
            while not connection.poll(ALIVE_SECONDS):
                if os.getppid() != parent:
                    _leave(1)
            put(connection.recv())
    except (EOFError, OSError):
        _leave(1)
    except BaseException as error:
        _fail(connection, error)


def _fail(connection: Connection, error: BaseException) -> NoReturn:
    """The traceback goes to stderr, unless rank 0 has ended meanwhile, or ends this process because of another one."""
    with suppress(OSError):
        connection.send(Failure.of(error))
    if not isinstance(error, InferplaneError):
        time.sleep(CAUSE_SECONDS)
        traceback.print_exception(error)
    _leave(1)


def _leave(code: int) -> NoReturn:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
