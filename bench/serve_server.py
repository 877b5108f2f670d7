"""A server that a run starts for itself, as a process of its own, and ends."""
from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from ..core.loader import Progress
from ..errors import ConfigError
from .peers.make_model import make_model

START_SECONDS = 600.0
"""For a model to load."""
END_SECONDS = 60.0
SHOWN_LINES = 12
READY = re.compile(r"^ *ready +(https?://\S+)/v1", re.MULTILINE)


class OwnServer:
    """A server's process under way. url: where it listens, without /v1."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log, self.url = process, log, ""
        self._seen = psutil.Process(process.pid)

    def wait(self, address: Callable[[], str | None]) -> None:
        """Until it answers. address: where, once it does. Raises `ConfigError` with its last words."""
        end = time.monotonic() + START_SECONDS
        while not (found := address()):
            code = self.process.poll()
            if code is not None or time.monotonic() > end:
                what = f"ended with code {code}" if code is not None else f"was not ready within {START_SECONDS:g} s"
                last = "\n".join(self.said().strip().splitlines()[-SHOWN_LINES:])
                raise ConfigError(f"the server that was started for the run {what}. It said:\n{last}")
            time.sleep(0.05)
        self.url = found

    def told_address(self) -> str | None:
        """That `inferplane serve` has said."""
        found = READY.search(self.said())
        return found[1] if found else None

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def cpu_seconds(self) -> float:
        """Of it and of the processes it started, so far."""
        times = [one.cpu_times() for one in (self._seen, *self._seen.children(recursive=True))]
        return float(sum(one.user + one.system for one in times))

    def resident_bytes(self) -> int:
        return int(self._seen.memory_info().rss)

    def end(self) -> int:
        """SIGTERM, or at last SIGKILL, where it runs still; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def own_server(options: Sequence[str], *, shape: str | None = None, progress: Progress | None = None) -> Iterator[OwnServer]:
    """options: of `inferplane serve`; its environment is ours. shape: random weights instead of its model, in a temporary folder.

    An interrupt at the keyboard is for whoever measures, so the server is in a session of its own.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferplane-serve-")))
        chosen = list(options)
        if shape is not None:
            if progress:
                progress("writing the model", 0, 1)
            chosen += ["--model", str(make_model(shape, folder / shape))]
            if progress:
                progress("writing the model", 1, 1)
        log = folder / "server.log"
        command = [sys.executable, "-m", f"{__package__.partition('.')[0]}.cli", "serve", "--port", "0", *chosen]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        server = OwnServer(process, log)
        try:
            if progress:
                progress("starting the server", 0, 1)
            server.wait(server.told_address)
            if progress:
                progress("starting the server", 1, 1)
            yield server
        finally:
            server.end()
