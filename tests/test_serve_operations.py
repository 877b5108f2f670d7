"""What operators rely on: rates of a key, the audit log."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine
from inferplane.errors import ConfigError

PLAIN = {"prompt": "Once upon a midnight", "max_tokens": 4}
OTHER = "another key"


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.1)
    yield made
    made.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_key_that_asks_too_often_waits_and_others_do_not(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, api_keys=(serving.KEY, OTHER), max_requests_per_minute=2)
    assert [app.post("/v1/completions", PLAIN).status_code for _ in range(2)] == [200, 200]
    refused = app.post("/v1/completions", PLAIN)
    serving.assert_error(refused, 429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
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
