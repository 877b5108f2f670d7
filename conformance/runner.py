"""Running cases: one worker process that may hang or die without taking the run with it, or in this process."""
from __future__ import annotations

import multiprocessing
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any

from ..core.env import Environment
from ..platforms import registry
from .case import Case, Outcome, Verdict
from .cases import find
from .oracle import Oracle
from .rig import Rig
from .xfail import Excuse, excused

GRADES = ("device", "compiled", "interpreted")
"""From the strongest proof to the weakest. What is emulated counts as interpreted."""
START_SECONDS = 300.0
"""That a platform may take to open; no case is charged for it."""


@dataclass(frozen=True)
class Result:
    """One case on one platform, as it stands in results.jsonl."""

    case: str
    feature: str
    level: int
    verdict: Verdict
    grade: str
    detail: str
    kernels: tuple[str, ...]
    seconds: float
    target: str = ""
    """At grade compiled: the chip."""
    codes: tuple[str, ...] = ()
    """At grade compiled: what its kernels became, by the names of lines in kernels.jsonl."""


def run(platform: str, cases: Sequence[Case], excuses: dict[str, Excuse], *, timeout_seconds: float = 120.0,
        today: date | None = None, jobs: int = 1) -> Iterator[Result]:
    """Each case's result, in their order; `jobs` at a time, each in a worker process that is replaced when it hangs or dies."""
    workers = [Worker(_work, platform) for _ in range(jobs)]
    free: Queue[Worker] = Queue()
    for worker in workers:
        free.put(worker)

    def run_one(case: Case) -> Result:
        worker = free.get()
        started = time.perf_counter()
        try:
            outcome, grade = worker.run(case, timeout_seconds)
        finally:
            free.put(worker)
        return _result(case, outcome, grade, excuses, today, time.perf_counter() - started)

    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(run_one, cases)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()


def run_here(rig: Rig, cases: Sequence[Case], excuses: dict[str, Excuse], *, today: date | None = None) -> Iterator[Result]:
    """The same in this process: for a debugger, for pytest, for kernels that only this process has."""
    for case in cases:
        started = time.perf_counter()
        outcome = case.run(rig)
        yield _result(case, outcome, grade_of(rig), excuses, today, time.perf_counter() - started)


def open_rig(platform: str) -> Rig:
    kept = Environment.read().cache
    found = registry.find(platform, cache=kept / "compiled")
    return Rig(found.open(), Oracle(kept / "conformance"), found.open, found.open)


def grade_of(rig: Rig) -> str:
    grade = rig.platform.capabilities.grade
    return "interpreted" if grade == "emulated" else grade


def replay(platform: str, case: str, target: str = "") -> str:
    """The command that runs one case again, alone."""
    compiled = f" --grade compiled --target {target}" if target else ""
    return f"inferplane conformance run --platform {shlex.quote(platform)}{compiled} {shlex.quote(case)}"


def _result(case: Case, outcome: Outcome, grade: str, excuses: dict[str, Excuse], today: date | None, seconds: float) -> Result:
    heard = excused(outcome, excuses.get(case.id), today or date.today())
    return Result(case.id, case.feature, case.level, heard.verdict, grade, heard.detail, heard.kernels, round(seconds, 4))


class Worker:
    """A process that says its grade once it is ready, and then answers each address with an outcome."""

    def __init__(self, work: Callable[..., None], *given: str) -> None:
        """work(*given, pipe): what the process does, in a module that it can import."""
        self.work, self.given = work, given
        self.process: Any = None
        self.grade = GRADES[-1]

    def run(self, case: Case, timeout_seconds: float) -> tuple[Outcome, str]:
        """(the outcome, the platform's grade); the weakest grade until the platform has said its own."""
        try:
            if self.process is None:
                self._start()
            self.pipe.send(case.id)
            return self._hear(timeout_seconds), self.grade
        except TimeoutError as error:
            self.stop()
            return Outcome(Verdict.TIMEOUT, str(error)), self.grade
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            self.stop()
            end = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            return Outcome(Verdict.ERROR, f"the process died with {end}"), self.grade

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.work, args=(*self.given, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.grade = self._hear(START_SECONDS)

    def _hear(self, timeout_seconds: float) -> Any:
        if not self.pipe.poll(timeout_seconds):
            raise TimeoutError(f"no answer within {timeout_seconds:g} s")
        return self.pipe.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def _work(platform: str, pipe: Connection) -> None:
    rig = open_rig(platform)
    answer(pipe, grade_of(rig), lambda case: case.run(rig))


def answer(pipe: Connection, grade: str, run: Callable[[Case], Outcome]) -> None:
    """A worker's side, until the other end is closed."""
    try:
        pipe.send(grade)
        while True:
            pipe.send(run(find(pipe.recv())))
    except (EOFError, KeyboardInterrupt):
        return
