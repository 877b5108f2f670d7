"""When the engine fails: its requests get a clear error, and the server recovers, or ends within a limit; it never hangs."""
from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine
from inferplane.serving.watch import fail_all, until_broken

TEXT = "/v1/completions"


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.02)
    yield made
    made.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("after", [0, 5], ids=["at-first", "later"])
def test_a_step_that_fails_ends_its_requests_and_the_server_goes_on(
    serving: ModuleType, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, stream: bool, after: int,
) -> None:
    app, submit, steps = serving.App(engine), engine.engine.runner.submit, 0

    def failing(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == after + 1:
            raise MemoryError("the device has no memory left")
        return submit(*arguments)

    monkeypatch.setattr(engine.engine.runner, "submit", failing)
    answer = app.post(TEXT, {**serving.ENDLESS, "max_tokens": 30, "stream": stream})
    if stream and after:
        *_, error, last = serving.chunks(answer.text)
        assert '"code":"engine_error"' in error and "no memory left" in error and last == "[DONE]"
    else:
        assert "no memory left" in serving.assert_error(answer, 500, "engine_error")["message"]
    assert app.post(TEXT, {"prompt": "Once", "max_tokens": 3}).status_code == 200
    assert set(engine.stats().kv.held_blocks) == {0}


def test_a_step_that_hangs_ends_the_requests_that_wait_for_it(serving: ModuleType, engine: AsyncEngine) -> None:
    app, released = serving.App(engine, step_timeout_seconds=0.3), threading.Event()

    async def main() -> None:
        async with app.http() as http:
            task = asyncio.create_task(http.post(TEXT, json=serving.ENDLESS))
            while not len(app.service.gate):
                await asyncio.sleep(0.01)
            engine.engine._post(released.wait)
            why = await until_broken(app.service)
            fail_all(app.service, why)
            assert "took longer than 0.3 s" in serving.assert_error(await task, 500, "engine_stopped")["message"]
            serving.assert_error(await http.post(TEXT, json={"prompt": "Once"}), 503, "engine_stopped")
            serving.assert_error(await http.get("/ready"), 503, "engine_stopped")
            released.set()

    try:
        serving.run(main())
    finally:
        released.set()


def test_a_closed_engine_is_neither_healthy_nor_ready(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine)
    engine.close()
    serving.assert_error(app.ask("GET", "/health"), 503, "engine_stopped")
    serving.assert_error(app.ask("GET", "/ready"), 503, "engine_stopped")
    assert app.ask("GET", "/metrics").status_code == 200
    assert "closed" in serving.run(until_broken(app.service))
    serving.assert_error(app.post(TEXT, {"prompt": "Once"}), 500, "engine_error")


HANGING = """
import sys, threading, time
from inferplane import AsyncEngine
from inferplane.serving.app import make_app
from inferplane.serving.config import ServeConfig
from inferplane.serving.server import bind, run, url
from inferplane.serving.service import Service

engine = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.02)
service = Service.of(engine, ServeConfig(port=0, step_timeout_seconds=1))
with bind(service.config) as bound:
    def ready():
        print(url(service.config, bound), flush=True)
        threading.Timer(2, lambda: engine.engine._post(lambda: time.sleep(1000))).start()
    code = run(make_app(service), service, bound, ready)
engine.close()
sys.exit(code)
"""


def test_a_server_whose_engine_hangs_ends_by_itself(serving: ModuleType, tmp_path: Path) -> None:
    import httpx2

    process = subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        began = time.monotonic()
        answer = httpx2.post(f"{url}{TEXT}", json={**serving.ENDLESS, "n": 100}, timeout=30)
        serving.assert_error(answer, 500, "engine_stopped")
        assert process.wait(20) == 1
        assert time.monotonic() - began < 20
    finally:
        process.kill()
        process.communicate()
