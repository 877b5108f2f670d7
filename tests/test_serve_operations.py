"""What operators rely on: rates of a key, the audit log."""
from __future__ import annotations

import http.server
import json
import threading
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine
from inferplane.errors import ConfigError

PLAIN = {"prompt": "Once upon a midnight", "max_tokens": 4}
OTHER = "another key"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_key_that_asks_too_often_waits_and_others_do_not(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, api_keys=(serving.KEY, OTHER), max_requests_per_minute=2)
    assert [app.post("/v1/completions", PLAIN).status_code for _ in range(2)] == [200, 200]
    refused = app.post("/v1/completions", PLAIN)
    serving.assert_error(refused, 429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert app.service.gate.refusals["rate_limit_exceeded"] == 1
    other = app.post("/v1/completions", PLAIN, headers={"authorization": f"Bearer {OTHER}"})
    assert other.status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tokens_count_against_a_key_once_they_are_known(serving: ModuleType, engine: AsyncEngine, stream: bool) -> None:
    app = serving.App(engine, max_tokens_per_minute=60)
    first = app.post("/v1/completions", {**PLAIN, "max_tokens": 100, "ignore_eos": True, "n": 2, "stream": stream})
    assert first.status_code == 200
    refused = app.post("/v1/completions", PLAIN)
    serving.assert_error(refused, 429, "rate_limit_exceeded")
    assert 120 <= int(refused.headers["retry-after"]) <= 160, "200 tokens were drawn, and the prompt's"


def test_a_minute_gives_a_key_its_rate_back() -> None:
    from inferplane.serving.errors import Refused
    from inferplane.serving.rates import Rates

    now = [0.0]
    rates = Rates(requests=2, tokens=100, clock=lambda: now[0])
    rates.enter("a")
    rates.used("a", 150)
    with pytest.raises(Refused, match="100 tokens"):
        rates.enter("a")
    now[0] += 31.0
    rates.enter("a")
    rates.enter("a")
    with pytest.raises(Refused, match="2 requests"):
        rates.enter("a")
    now[0] += 3600.0
    assert [rates.enter("a") for _ in range(2)] == [None, None]
    with pytest.raises(Refused):
        rates.enter("a")


def test_the_audit_log_tells_who_asked_for_how_much_and_no_prompt(serving: ModuleType, engine: AsyncEngine, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    app = serving.App(engine, api_keys=(serving.KEY,), audit_log=path, served_model_names=("tiny",))
    answer = app.post("/v1/completions", {**PLAIN, "n": 2}, headers={**app.headers, "x-request-id": "mine"}).json()
    app.post("/v1/completions", {**PLAIN, "stream": True, "ignore_eos": True})
    app.post("/v1/completions", {**PLAIN, "temperature": -1})
    app.post("/v1/completions", PLAIN, headers={"authorization": "Bearer wrong"})
    app.ask("GET", "/health")
    first, second, third, fourth = lines(path)
    assert (first["request_id"], first["model"], first["status"], first["path"]) == ("mine", "tiny", 200, "/v1/completions")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    assert (second["status"], second["prompt_tokens"], second["completion_tokens"]) == (200, first["prompt_tokens"], 4)
    assert (third["status"], third["completion_tokens"], fourth["status"], fourth["key"]) == (400, 0, 401, "")
    assert first["key"] == third["key"] and len(first["key"]) == 16
    text = path.read_text()
    assert serving.KEY not in text and "midnight" not in text and "wrong" not in text
    assert path.stat().st_mode & 0o077 == 0, "nobody but its owner reads it"


def test_the_audit_log_has_bodies_where_they_are_wanted(serving: ModuleType, engine: AsyncEngine, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    app = serving.App(engine, audit_log=path, audit_log_prompts=True)
    app.post("/v1/completions", PLAIN)
    assert json.loads(lines(path)[0]["body"]) == PLAIN


def test_an_audit_log_that_cannot_be_written_is_told_at_the_start(serving: ModuleType, engine: AsyncEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        serving.App(engine, audit_log=tmp_path / "none" / "audit.jsonl")
    with pytest.raises(ConfigError, match="audit_log_prompts"):
        serving.App(engine, audit_log_prompts=True)


def test_a_collector_gets_a_span_for_each_request(serving: ModuleType, engine: AsyncEngine) -> None:
    pytest.importorskip("opentelemetry.sdk")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    posted: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        app = serving.App(engine, otlp_traces_endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        answer = app.post("/v1/completions", PLAIN, headers={"traceparent": f"00-{trace}-{parent}-01"}).json()
        app.post("/v1/completions", {**PLAIN, "temperature": -1})
        app.ask("GET", "/health")
        app.service.close()
        server.shutdown()
    spans = [span for data in posted for resource in service.ExportTraceServiceRequest.FromString(data).resource_spans
             for scope in resource.scope_spans for span in scope.spans]
    phases, spans = [span for span in spans if span.name in ("queue", "prefill", "decode")], [
        span for span in spans if span.name.startswith("POST")]
    told = [{one.key: one.value.int_value or one.value.string_value for one in span.attributes} for span in spans]
    assert [one["http.response.status_code"] for one in told] == [200, 400], "and none for a probe"
    assert told[0]["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert (spans[0].trace_id.hex(), spans[0].parent_span_id.hex(), spans[0].name) == (trace, parent, "POST /v1/completions")
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano
    assert [span.name for span in phases] == ["queue", "prefill", "decode"], "and none for what never reached the engine"
    assert {span.parent_span_id for span in phases} == {spans[0].span_id} and {span.trace_id.hex() for span in phases} == {trace}
    edges = [spans[0].start_time_unix_nano, *(edge for one in phases for edge in (one.start_time_unix_nano, one.end_time_unix_nano)),
             spans[0].end_time_unix_nano]
    assert all(later - earlier > -2e6 for earlier, later in pairwise(edges)), "in milliseconds, one after the other"
    assert all(b"midnight" not in data for data in posted), "no prompt leaves"
