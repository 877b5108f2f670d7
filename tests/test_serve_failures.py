"""When the engine fails: its requests get a clear error, and the server recovers, or ends within a limit; it never hangs."""
from __future__ import annotations

import asyncio
import contextlib
import re
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

httpx2 = pytest.importorskip("httpx2")

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


SERVER = """
import ctypes, sys, threading
import numpy as np
from inferplane import AsyncEngine
from inferplane.serving.app import make_app
from inferplane.serving.config import ServeConfig
from inferplane.serving.server import bind, run, url
from inferplane.serving.service import Service

class Never:
    def result(self):
        threading.Event().wait()

engine = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.02)
runner, broken = engine.engine.runner, False
submit = runner.submit

def step(plan, drawn):
    global broken
    if broken or any(len(row.request.prompt) > 500 for row in plan.rows):
        SABOTAGE
    return submit(plan, drawn)

runner.submit = step
service = Service.of(engine, ServeConfig(port=0, step_timeout_seconds=1))
with bind(service.config) as bound:
    code = run(make_app(service), service, bound, lambda: print(url(service.config, bound), flush=True))
engine.close()
sys.exit(code)
"""
"""A server whose steps do something else once a long prompt is among their rows."""
LONG = {"prompt": [5] * 600, "max_tokens": 4}
SHORT = {"prompt": "Once", "max_tokens": 4, "ignore_eos": True}
LIMIT_SECONDS = 25.0


@contextlib.contextmanager
def sabotaged(folder: Path, what: str) -> Iterator[tuple[Any, str]]:
    """The process and its address."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVER.replace("SABOTAGE", what)], stdout=subprocess.PIPE, stderr=log,
                                   text=True, cwd=folder)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", ["threading.Event().wait()", "return Never()"], ids=["as-it-begins", "without-a-result"])
def test_a_server_whose_step_hangs_tells_its_requests_and_ends(serving: ModuleType, tmp_path: Path, what: str) -> None:
    async def main(url: str) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=LIMIT_SECONDS) as http:
            running = asyncio.create_task(http.post(TEXT, json=serving.ENDLESS))
            stream = asyncio.create_task(http.post(TEXT, json={**serving.ENDLESS, "stream": True}))
            await asyncio.sleep(0.2)
            hangs = serving.assert_error(await http.post(TEXT, json=LONG), 500, "engine_stopped")
            assert "took longer than 1 s" in hangs["message"]
            serving.assert_error(await running, 500, "engine_stopped")
            *_, error, last = serving.chunks((await stream).text)
            assert '"code":"engine_stopped"' in error and last == "[DONE]"

    with sabotaged(tmp_path, what) as (process, url):
        began = time.monotonic()
        serving.run(main(url))
        assert process.wait(LIMIT_SECONDS) == 1
        assert time.monotonic() - began < LIMIT_SECONDS


def test_a_server_whose_step_never_gives_the_interpreter_back_ends(tmp_path: Path) -> None:
    """No thread of Python runs any more, so that nothing can be answered."""
    with sabotaged(tmp_path, "ctypes.PyDLL(None).sleep(1000)") as (process, url):
        began = time.monotonic()
        with pytest.raises(httpx2.TransportError):
            httpx2.post(f"{url}{TEXT}", json=LONG, timeout=LIMIT_SECONDS)
        assert process.wait(LIMIT_SECONDS) == 1
        assert time.monotonic() - began < LIMIT_SECONDS
    said = (tmp_path / "server.log").read_text()
    assert "Timeout" in said and "in step" in said, "where each thread stood"


def test_a_server_whose_device_runs_out_of_memory_tells_so_and_goes_on(serving: ModuleType, tmp_path: Path) -> None:
    with sabotaged(tmp_path, "np.empty(1 << 60, np.uint8)") as (process, url), httpx2.Client(base_url=url, timeout=LIMIT_SECONDS) as http:
        for _ in range(3):
            error = serving.assert_error(http.post(TEXT, json=LONG), 500, "engine_error")
            assert "MemoryError" in error["message"] and "Unable to allocate" in error["message"]
            together = {**SHORT, "prompt": [SHORT["prompt"], LONG["prompt"]], "stream": True}
            assert "Unable to allocate" in http.post(TEXT, json=together).text
            assert http.post(TEXT, json=SHORT).json()["usage"]["completion_tokens"] == 4
        assert http.get("/ready").status_code == 200
        assert re.findall(r'inferplane:kv_blocks\{group="\d+",model_name="tiny",state="held"\} (\S+)', http.get("/metrics").text) == ["0.0"]
        process.terminate()
        assert process.wait(LIMIT_SECONDS) == 0


def test_a_server_whose_device_fails_in_each_step_ends(serving: ModuleType, tmp_path: Path) -> None:
    with sabotaged(tmp_path, "broken = True; raise RuntimeError('device lost')") as (process, url):
        began, codes = time.monotonic(), []
        with httpx2.Client(base_url=url, timeout=LIMIT_SECONDS) as http, contextlib.suppress(httpx2.TransportError):
            http.post(TEXT, json=LONG)
            while time.monotonic() - began < LIMIT_SECONDS:
                answer = http.post(TEXT, json=SHORT)
                assert answer.status_code in (500, 503), answer.text
                codes.append(answer.json()["error"]["code"])
        assert process.wait(LIMIT_SECONDS) == 1
        assert codes.count("engine_error") > 1 and set(codes) <= {"engine_error", "engine_stopped"}
        assert time.monotonic() - began < LIMIT_SECONDS
    assert "steps of the engine failed" in (tmp_path / "server.log").read_text()
