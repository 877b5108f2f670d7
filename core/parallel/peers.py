"""Rank 0's side of a model on several devices: workers are started, sent every step, watched, and ended."""
from __future__ import annotations

import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...errors import ConfigError, EngineError, InferplaneError
from ...ops import Packed
from ...platforms.contract import Collectives, HostArrays, Pending, Platform, World
from .messages import Allocate, Allocated, Blocks, Failure, Job, Meet, Opened, Prepared, Read

CAUSE_SECONDS = 2.0
"""How long a failure waits for its cause: a device that died makes the others fail, too."""
END_SECONDS = 5.0
"""How long a worker may take to end before it is killed."""
BOOT = """\
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from {package}.core.parallel.worker import main
main(connection)
"""
"""Not multiprocessing's: it would import the caller's script once more in each worker."""


@dataclass(frozen=True)
class Worker:
    """One process and the socket to it."""

    world: World
    process: subprocess.Popen[bytes]
    connection: Connection
    answers: SimpleQueue[Any] = field(default_factory=SimpleQueue)

    @classmethod
    def start(cls, job: Job) -> Worker:
        """In a process group of its own: an interrupt from the terminal is rank 0's to deal with."""
        ours, theirs = socket.socketpair()
        with theirs:
            boot = BOOT.format(package=__package__.partition(".")[0])
            process = subprocess.Popen(
                [sys.executable, "-c", boot, str(theirs.fileno()), f"inferplane-rank-{job.world.rank}"],
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=(theirs.fileno(),), process_group=0,
            )
        made = cls(job.world, process, Connection(ours.detach()))
        made.tell(list(sys.path))
        made.tell(job)
        return made

    def tell(self, message: Any) -> None:
        with suppress(OSError):  # it has died, and is about to be told of
            self.connection.send(message)

    def __str__(self) -> str:
        return f"the worker of rank {self.world.rank} of {self.world.size} (process {self.process.pid})"

    def end(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def obituary(self) -> EngineError:
        """Of one whose socket is closed."""
        self.end(END_SECONDS)
        code = self.process.returncode
        how = f"ended with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}{', which the system also sends when memory runs out' if name == 'SIGKILL' else ''}"
        return EngineError(f"{self} {how}")


class Peers:
    """The workers of ranks 1 and up. `failure` is set once, and for good: a model that lacks a device cannot go on."""

    def __init__(self, job: Job) -> None:
        """job: rank 0's. Raises `ConfigError` for weights that cannot be sent to another process."""
        self.failure: InferplaneError | None = None
        self.world = replace(job.world, meeting=Path(tempfile.mkdtemp(prefix="inferplane-")))
        self._collectives: Collectives | None = None
        self._notify: Callable[[InferplaneError], None] | None = None
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._started: SimpleQueue[tuple[Pending, Future[Any]] | None] = SimpleQueue()
        self._ready = self._closing = False
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        try:
            pickle.dumps(job)
            for rank in range(1, self.world.size):
                self._workers.append(Worker.start(replace(job, world=replace(self.world, rank=rank))))
        except BaseException as error:
            self.close()
            if isinstance(error, (pickle.PicklingError, TypeError, AttributeError)):
                raise ConfigError(f"tensor_parallel sends the platform and the source of the weights to worker processes, and one of "
                                  f"them cannot be: {error}. Define its class in a module that can be imported.") from error
            raise
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._settle)]
        for thread in self._threads:
            thread.start()

    # Up to the first step: each of these waits for every worker, and raises the first failure.

    def meet(self, platform: Platform) -> Collectives:
        """Wait until every process has its platform open, and then for their common collectives."""
        self._answers(Opened)
        self.tell([Meet()] * len(self._workers))
        self._collectives = platform.collectives(self.world)
        return self._collectives

    def free_bytes(self) -> int:
        """Of the worker with the least memory left once its weights are in place."""
        return min(answer.free_bytes for answer in self._answers(Prepared))

    def allocate(self, blocks: Sequence[int], slots: int) -> None:
        self.tell([Allocate(tuple(blocks), slots)] * len(self._workers))
        self._answers(Allocated)
        self._ready = True

    def check(self) -> None:
        """Raise what has failed meanwhile."""
        if self.failure is not None:
            raise self.failure

    def _answers(self, kind: type[Any]) -> list[Any]:
        made = []
        for worker in self._workers:
            answer = worker.answers.get()
            if isinstance(answer, InferplaneError):
                raise answer
            assert isinstance(answer, kind), f"{worker} answered {answer}"
            made.append(answer)
        return made

    # Steps.

    def start(self, packed: Packed, run: Callable[[Packed], Pending]) -> Pending:
        """The step on every device; `run` starts ours. Its result, or the failure of any device, whichever comes first."""
        self.check()
        self.tell([packed] * len(self._workers))
        try:
            pending = run(packed)
        except Exception as error:
            self._lose(self._cause(error))
            raise
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.add(future)
        self._started.put((pending, future))
        if self.failure is not None:
            self._end(future, self.failure)
        return future

    def tell(self, messages: Sequence[Any]) -> None:
        """One to each worker, behind the steps that were started."""
        for worker, message in zip(self._workers, messages, strict=True):
            worker.tell(message)

    def read(self, group: int, blocks: Sequence[int]) -> list[HostArrays]:
        """Each worker's part of the blocks."""
        self.check()
        self.tell([Read(group, tuple(blocks))] * len(self._workers))
        return [answer.arrays for answer in self._answers(Blocks)]

    def watch(self, notify: Callable[[InferplaneError], None]) -> None:
        """notify: called from a thread of ours when a worker fails."""
        self._notify = notify
        if self.failure is not None:
            notify(self.failure)

    def _settle(self) -> None:
        while (item := self._started.get()) is not None:
            pending, future = item
            try:
                result = pending.result()
            except BaseException as error:
                self._lose(self._cause(error))
                continue
            with self._lock:
                self._waiting.discard(future)
                if not future.done():
                    future.set_result(result)

    def _end(self, future: Future[Any], error: InferplaneError) -> None:
        with self._lock:
            self._waiting.discard(future)
            if not future.done():
                future.set_exception(error)

    # Failures.

    def _watch(self) -> None:
        alive = {worker.connection: worker for worker in self._workers}
        while alive:
            for connection in wait(list(alive)):
                worker = alive[connection]  # type: ignore[index]
                try:
                    answer = worker.connection.recv()
                except Exception:  # the end, or the end within a message
                    del alive[worker.connection]
                    worker.connection.close()
                    if not self._closing:
                        self._lose(worker.obituary())
                    continue
                if isinstance(answer, Failure):
                    self._lose(self._killed() or answer.kind(f"{answer.text} (Told by {worker}.)"))
                else:
                    worker.answers.put(answer)

    def _killed(self) -> InferplaneError | None:
        """The cause of another worker's failure: one that was killed, which may show a moment later."""
        deadline = time.monotonic() + CAUSE_SECONDS
        while time.monotonic() < deadline and not self._closing:
            for worker in self._workers:
                if (worker.process.poll() or 0) < 0:
                    return worker.obituary()
            time.sleep(0.02)
        return None

    def _cause(self, error: BaseException) -> InferplaneError:
        """Of an error in our own step: another device's end, or the error itself."""
        deadline = time.monotonic() + 2 * CAUSE_SECONDS
        while self.failure is None and time.monotonic() < deadline and not self._closing:
            time.sleep(0.02)
        return self.failure or EngineError(f"rank 0 of {self.world.size} failed with {type(error).__name__}: {error}")

    def _lose(self, error: InferplaneError) -> None:
        with self._lock:
            if self.failure is not None or self._closing:
                return
            self.failure = error
            waiting = list(self._waiting)
        for worker in self._workers:
            worker.answers.put(error)
        for future in waiting:
            self._end(future, error)
        for worker in self._workers:
            worker.process.kill()
        if self._collectives is not None:
            with suppress(Exception):
                self._collectives.abort()
        if self._notify is not None:
            self._notify(error)

    def close(self) -> None:
        """End every worker, after the steps that were sent. At once where they do not serve, or one of them is lost."""
        self._closing = True
        self._started.put(None)
        patient = self._ready and self.failure is None
        for worker in self._workers:
            worker.tell(None) if patient else worker.process.kill()
        for worker in self._workers:
            worker.end(END_SECONDS)
        for thread in self._threads:
            thread.join(END_SECONDS)
        if self._collectives is not None:
            with suppress(Exception):
                self._collectives.close()
        shutil.rmtree(self.world.meeting, ignore_errors=True)
