"""What the tests of the server share: an application without a network, clients for it, and a real process."""
from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import openai
from inferplane import AsyncEngine
from inferplane.serving.app import make_app
from inferplane.serving.config import ServeConfig
from inferplane.serving.service import Service

PATIENCE_SECONDS = 60.0
KEY = "correct horse battery staple"
CHAT = {"messages": [{"role": "user", "content": "Repeat this: blue fox 42"}], "temperature": 0}
ENDLESS = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}
"""Longer than any test."""


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE_SECONDS))


class App:
    """The application in this process, over one engine."""

    def __init__(self, engine: AsyncEngine, **settings: Any) -> None:
        self.service = Service.of(engine, ServeConfig(**settings))
        self.app = make_app(self.service)
        self.headers = {"authorization": f"Bearer {settings['api_keys'][0]}"} if settings.get("api_keys") else {}

    @contextlib.asynccontextmanager
    async def http(self) -> AsyncIterator[httpx2.AsyncClient]:
        transport, headers = httpx2.ASGITransport(self.app), self.headers
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", headers=headers, timeout=PATIENCE_SECONDS) as made:
            yield made

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), timeout=PATIENCE_SECONDS) as http:
            yield openai.AsyncOpenAI(api_key=KEY, base_url="http://server/v1", http_client=http, max_retries=0)

    def ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """One request on a loop of its own."""
        async def main() -> httpx2.Response:
            async with self.http() as http:
                return await http.request(method, path, **arguments)

        answer: httpx2.Response = run(main())
        return answer

    def post(self, path: str, body: Any, **arguments: Any) -> httpx2.Response:
        return self.ask("POST", path, json=body, **arguments)


def assert_error(answer: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The answer is an error of OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    [(name, error)] = answer.json().items()
    assert name == "error" and set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    assert code is None or error["code"] == code, error
    found: dict[str, Any] = error
    return found


def chunks(text: str) -> list[str]:
    """The data of each event of a stream."""
    return re.findall(r"^data: (.*)$", text, re.MULTILINE)


class Process:
    """`inferplane serve` as a person starts it, on a port that is free."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")}
        self.log = folder / "server.log"
        command = [sys.executable, "-m", "inferplane.cli", "serve", "--platform", "cpu", "--port", "0", "--kv-cache-memory-gb", "0.1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *options], stderr=log, stdout=log, cwd=folder, env={**kept, **variables})
        self.url = ""

    def __enter__(self) -> Process:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(r"ready +(https?://\S+)/v1", self.said())):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)
        self.url = found[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)

    def figure(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = httpx2.get(f"{self.url}/metrics").text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def becomes(self, name: str, value: float) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while (found := self.figure(name)) != value:
            assert time.monotonic() < end, f"{name} is {found} and does not become {value}"
            time.sleep(0.05)
