"""`inferplane serve` as a process: what it says, many streams at once, clients that vanish, signals, TLS."""
from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

STREAMS = 60
TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def server(serving: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving.Process(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def own_server(serving: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """One that a test may end."""
    with serving.Process(tmp_path, "--drain-seconds", "20", "--log-format", "json") as process:
        yield process


def empty(server: Any) -> None:
    server.becomes("inferplane:requests_inside", 0)
    server.becomes("vllm:num_requests_running", 0)
    server.becomes("vllm:kv_cache_usage_perc", 0)


def test_starting_tells_a_person_what_happens(server: Any) -> None:
    said = server.said()
    for word in ("loading", "model", "platform", "KV cache", "limits", "keys", "ready"):
        assert f"{word}  " in said
    assert "every program on this machine may ask" in said and server.url in said


def test_sixty_streams_at_once_say_what_each_says_alone(server: Any, serving: ModuleType) -> None:
    import httpx2

    def body(place: int) -> dict[str, Any]:
        words = f"What is {place} + {place + 7}?"
        return {"messages": [{"role": "user", "content": words}], "temperature": 1.0, "seed": place, "max_tokens": 40, "stream": True}

    async def ask(http: Any, place: int) -> str:
        answer = await http.post("/v1/chat/completions", json=body(place))
        *events, last = serving.chunks(answer.text)
        assert last == "[DONE]"
        return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)

    async def main() -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=httpx2.Limits(max_connections=STREAMS)) as http:
            together = await asyncio.gather(*(ask(http, place) for place in range(STREAMS)))
            assert together[::10] == [await ask(http, place) for place in range(0, STREAMS, 10)]

    serving.run(main())
    empty(server)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_vanishes_frees_its_blocks(server: Any, serving: ModuleType, stream: bool) -> None:
    import httpx2

    aborted = server.figure('vllm:request_success_total{finished_reason="abort",model_name="tiny"}')

    async def leave(http: Any, place: int) -> None:
        try:
            async with asyncio.timeout(0.3 + place / 50), http.stream("POST", TEXT, json={**serving.ENDLESS, "stream": stream}) as answer:
                async for _ in answer.aiter_lines():
                    pass
        except TimeoutError:
            pass

    async def main() -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            await asyncio.gather(*(leave(http, place) for place in range(8)))

    serving.run(main())
    empty(server)
    assert server.figure('vllm:request_success_total{finished_reason="abort",model_name="tiny"}') == aborted + 8


@pytest.mark.parametrize(("sent", "status"), [
    pytest.param(b"\x16\x03\x01\x00\xa5", 400, id="tls"),
    pytest.param(b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400, id="a-negative-length"),
    pytest.param(b"GET / HTTP/1.1\r\nx-a: " + b"a" * 1_000_000, 431, id="a-header-without-end"),
    pytest.param(b"GET /" + b"a" * 1_000_000, 431, id="a-path-without-end"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200_000, 431, id="headers-without-end"),
])
def test_what_is_no_request_is_turned_away_and_others_go_on(server: Any, sent: bytes, status: int) -> None:
    import httpx2

    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            answer = b""  # it closed while we were still sending
    assert answer.startswith(b"HTTP/1.1 %d" % status) or (answer == b"" and status == 431), answer
    assert httpx2.get(f"{server.url}/health").status_code == 200


def test_a_head_that_does_not_arrive_is_not_waited_for(server: Any) -> None:
    from inferplane.serving import connection

    assert connection.HEAD_SECONDS <= 30
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=connection.HEAD_SECONDS + 10) as slow:
        slow.sendall(b"GET /hea")
        answer = slow.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408") and b'"code":"head_timeout"' in answer


def test_sigterm_lets_streams_end_refuses_new_ones_and_exits_in_time(own_server: Any, serving: ModuleType) -> None:
    import httpx2

    server = own_server

    async def main() -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=httpx2.Limits(max_connections=30)) as http:
            body = {**serving.ENDLESS, "max_tokens": 600, "stream": True}
            tasks = [asyncio.create_task(http.post(TEXT, json=body)) for _ in range(8)]
            while server.figure("vllm:num_requests_running") < 8:
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            while (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            refused = await http.post(TEXT, json={"prompt": "Once", "max_tokens": 1})
            serving.assert_error(refused, 503, "shutting_down")
            assert int(refused.headers["retry-after"]) >= 1
            for answer in await asyncio.gather(*tasks):
                *events, last = serving.chunks(answer.text)
                assert last == "[DONE]" and json.loads(events[-1])["choices"][0]["finish_reason"] == "length"

    serving.run(main())
    assert server.process.wait(10) == 0
    lines = [json.loads(line) for line in server.said().splitlines() if line.startswith("{")]
    assert any("SIGTERM" in line["message"] for line in lines)


@pytest.mark.parametrize("twice", [False, True], ids=["limit", "second-signal"])
def test_requests_that_do_not_end_are_told_when_the_time_is_over(serving: ModuleType, tmp_path: Path, twice: bool) -> None:
    import httpx2

    with serving.Process(tmp_path, "--drain-seconds", "60" if twice else "0.5") as server:
        async def main() -> None:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
                body = {**serving.ENDLESS, "n": 64}
                whole = asyncio.create_task(http.post(TEXT, json=body))
                stream = asyncio.create_task(http.post(TEXT, json={**body, "stream": True}))
                while server.figure("vllm:num_requests_running") < 128:
                    await asyncio.sleep(0.02)
                server.process.send_signal(signal.SIGTERM)
                if twice:
                    await asyncio.sleep(0.2)
                    server.process.send_signal(signal.SIGINT)
                serving.assert_error(await whole, 503, "shutting_down")
                *_, error, last = serving.chunks((await stream).text)
                assert '"code":"shutting_down"' in error and last == "[DONE]"

        began = time.monotonic()
        serving.run(main())
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 30


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(server: Any, serving: ModuleType, tmp_path: Path) -> None:
    taken = serving.Process(tmp_path, "--port", server.url.rpartition(":")[2])
    assert taken.process.wait(30) == 1
    assert "cannot be taken" in taken.said() and "choose another --port" in taken.said()
    assert "loading" not in taken.said()


def test_a_key_from_the_environment_closes_the_server(serving: ModuleType, tmp_path: Path) -> None:
    import httpx2

    with serving.Process(tmp_path, INFERPLANE_API_KEY=serving.KEY, INFERPLANE_LOG="debug") as server:
        serving.assert_error(httpx2.get(f"{server.url}/v1/models"), 401)
        assert httpx2.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {serving.KEY}"}).status_code == 200
        assert server.end() == 0
    assert "one key opens it" in server.said() and serving.KEY not in server.said()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_log_has_a_key_or_a_prompt_whatever_goes_wrong(serving: ModuleType, tmp_path: Path, log_format: str) -> None:
    """At the finest level, in either format, and in the audit log."""
    import httpx2

    plan, wrong = "mysecretplan", "almost the right key"
    audit = tmp_path / "audit.jsonl"
    said = {"messages": [{"role": "user", "content": plan}], "max_tokens": 4}
    broken: dict[str, tuple[int, Any]] = {
        "whole": (200, said), "streamed": (200, {**said, "stream": True}), "an unknown field": (400, {**said, plan: plan}),
        "a wrong type": (400, {**said, "temperature": plan}), "an unknown model": (404, {**said, "model": plan}),
        "too long": (400, {"messages": [{"role": "user", "content": f"{plan} " * 2000}]}),
        "a regular expression": (400, {**said, "structured_outputs": {"regex": f"({plan}"}}),
        "a template's variable": (400, {**said, "chat_template_kwargs": {"messages": plan}}),
        "an unknown tool": (400, {**said, "tools": [{"type": "function", "function": {"name": plan}}], "tool_choice": {
            "type": "function", "function": {"name": f"{plan}2"}}}),
    }
    with serving.Process(tmp_path, "--log-format", log_format, "--audit-log", str(audit), INFERPLANE_API_KEY=serving.KEY,
                         INFERPLANE_LOG="debug") as server:
        with httpx2.Client(base_url=server.url, timeout=60, headers={"authorization": f"Bearer {serving.KEY}"}) as http:
            for name, (status, body) in broken.items():
                assert http.post("/v1/chat/completions", json=body).status_code == status, name
            for bad in (plan, f'{{"messages": "{plan}', f'{{"prompt": "{plan}"}}{{}}'):
                answer = http.post(TEXT, content=bad.encode(), headers={"content-type": "application/json"})
                serving.assert_error(answer, 400)
            assert http.get("/v1/models", params={"api_key": serving.KEY}, headers={"authorization": f"Bearer {wrong}"}).status_code == 401
            assert http.get("/v1/models", headers={"authorization": f"Basic {serving.KEY}"}).status_code == 401
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\nauthorization Bearer {serving.KEY}\r\n{plan}\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        assert server.end() == 0
    for text in (server.said(), audit.read_text()):
        assert "/v1/chat/completions" in text, "there is something to look at"
        assert not [secret for secret in (serving.KEY, wrong, plan) if secret in text]


@pytest.mark.parametrize("sent", [
    pytest.param(b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="two-lengths"),
    pytest.param(b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", id="lengths-that-differ"),
    pytest.param(b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}", id="a-chunk-without-end"),
    pytest.param(b"transfer-encoding: chunked\r\n\r\n1;" + b"a" * 300_000 + b"\r\n", id="a-chunk-s-extension-without-end"),
    pytest.param(b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000, id="trailers-without-end"),
])
def test_a_body_that_lies_about_its_length_bounces(server: Any, sent: bytes) -> None:
    """One request must never be read as two."""
    import httpx2

    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + sent)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
    assert answer.count(b"HTTP/1.1 ") <= 1 and answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431"), answer
    assert httpx2.get(f"{server.url}/health").status_code == 200


def test_it_speaks_https_with_a_certificate(serving: ModuleType, tmp_path: Path) -> None:
    import httpx2

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with serving.Process(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx2.get(f"{server.url}/health", verify=trusted).json() == {"status": "ok"}
