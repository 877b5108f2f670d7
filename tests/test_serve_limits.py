"""The server's limits: queues, keys, time, clients that leave, and a shutdown that lets running requests end."""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine
from inferplane.errors import ConfigError
from inferplane.serving.config import ServeConfig
from inferplane.serving.errors import Refused
from inferplane.serving.gate import Gate
from inferplane.serving.keys import Keys

pytestmark = pytest.mark.usefixtures("nothing_leaks")
TEXT = "/v1/completions"
SHORT = {"prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.05, max_num_seqs=2)
    yield made
    made.close()


async def inside(app: Any, count: int) -> None:
    while app.service.gate.sequences < count:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_beyond_the_queue_is_a_429_that_says_when_to_come_back(serving: ModuleType, engine: AsyncEngine, stream: bool) -> None:
    app = serving.App(engine, max_queue=1)

    async def main() -> None:
        async with app.http() as http:
            tasks = [asyncio.create_task(http.post(TEXT, json={**serving.ENDLESS, "max_tokens": 200})) for _ in range(3)]
            await inside(app, 3)
            refused = await http.post(TEXT, json={**SHORT, "stream": stream})
            serving.assert_error(refused, 429, "queue_full")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
            assert (await http.post(TEXT, json=SHORT)).status_code == 200

    serving.run(main())


def test_one_key_cannot_take_the_place_of_another(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, api_keys=("first", "second"), max_sequences_per_key=2)

    async def main() -> None:
        async with app.http() as http:
            second = {"authorization": "Bearer second"}
            task = asyncio.create_task(http.post(TEXT, json={**serving.ENDLESS, "max_tokens": 300, "n": 2}))
            await inside(app, 2)
            serving.assert_error(await http.post(TEXT, json=SHORT), 429, "rate_limit_exceeded")
            assert (await http.post(TEXT, json=SHORT, headers=second)).status_code == 200
            serving.assert_error(await http.post(TEXT, json={**SHORT, "n": 3}, headers=second), 400, "too_many_sequences")
            assert (await task).status_code == 200

    serving.run(main())


def test_a_request_that_takes_too_long_ends_with_504(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, request_timeout_seconds=0.2)
    serving.assert_error(app.post(TEXT, serving.ENDLESS), 504, "request_timeout")
    serving.assert_error(app.post(TEXT, {**serving.ENDLESS, "prompt": ["Once", "upon"]}), 504, "request_timeout")


@pytest.mark.parametrize("prompt", ["Once", ["Once", "upon"]], ids=["one", "several"])
def test_a_stream_that_takes_too_long_says_so_and_ends(serving: ModuleType, engine: AsyncEngine, prompt: Any) -> None:
    app = serving.App(engine, request_timeout_seconds=0.3)
    *events, error, last = serving.chunks(app.post(TEXT, {**serving.ENDLESS, "prompt": prompt, "stream": True}).text)
    assert events and '"code":"request_timeout"' in error and last == "[DONE]"


def test_a_body_that_does_not_arrive_is_a_408(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, body_timeout_seconds=0.1)

    async def slow() -> Any:
        yield b'{"prompt": '
        await asyncio.sleep(5)

    answer = app.ask("POST", TEXT, content=slow(), headers={"content-type": "application/json"})
    serving.assert_error(answer, 408, "body_timeout")


def test_draining_lets_running_requests_end_and_refuses_new_ones(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine)

    async def main() -> None:
        async with app.http() as http:
            task = asyncio.create_task(http.post(TEXT, json={**serving.ENDLESS, "max_tokens": 200}))
            await inside(app, 1)
            app.service.gate.close(Refused(503, "going", code="shutting_down"))
            serving.assert_error(await http.post(TEXT, json=SHORT), 503, "shutting_down")
            serving.assert_error(await http.get("/ready"), 503, "shutting_down")
            assert (await http.get("/health")).status_code == 200
            assert await app.service.gate.emptied(serving.PATIENCE_SECONDS)
            assert (await task).json()["usage"]["completion_tokens"] == 200

    serving.run(main())


def test_who_does_not_end_in_time_is_told(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine)

    async def main() -> None:
        async with app.http() as http:
            whole = asyncio.create_task(http.post(TEXT, json=serving.ENDLESS))
            stream = asyncio.create_task(http.post(TEXT, json={**serving.ENDLESS, "stream": True}))
            await inside(app, 2)
            await asyncio.sleep(0.2)
            app.service.gate.clear(Refused(503, "going", code="shutting_down"))
            serving.assert_error(await whole, 503, "shutting_down")
            *_, error, last = serving.chunks((await stream).text)
            assert '"code":"shutting_down"' in error and last == "[DONE]"

    serving.run(main())


def test_a_task_that_is_cancelled_from_outside_stays_cancelled() -> None:
    async def visit(gate: Gate) -> None:
        async with gate.enter("", 1, 60):
            await asyncio.sleep(60)

    async def main() -> int:
        gate = Gate(running=1, queue=0)
        task = asyncio.create_task(visit(gate))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(gate)

    assert asyncio.run(main()) == 0


def test_any_of_the_keys_opens_and_its_owner_has_a_name_that_is_no_key() -> None:
    keys = Keys(["first", "second"])
    owners = [keys.owner(f"Bearer {key}") for key in ("first", "second")]
    assert len(set(owners)) == 2 and not {"first", "second"} & set(owners)
    assert Keys([]).owner(None) == ""


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    keys = Keys(["first", "second", "third"])
    keys.owner("Bearer first")
    with pytest.raises(Refused):
        keys.owner("Bearer f")
    assert compared == [(32, 32)] * 6


def test_the_log_has_the_request_id_and_neither_prompt_nor_key(serving: ModuleType, engine: AsyncEngine,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    app = serving.App(engine, api_keys=(serving.KEY,))
    with caplog.at_level(logging.DEBUG):
        answer = app.post(TEXT, {**SHORT, "prompt": "my secret plan"}, headers={**app.headers, "x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [(one["request_id"], one["path"], one["status"]) for one in fields] == [("mine-1", TEXT, 200)]
    assert "secret plan" not in caplog.text and serving.KEY not in caplog.text + repr(app.service.config)


@pytest.mark.parametrize("identity", ["a b", "x" * 129, "\x7f", ""], ids=["space", "long", "control", "empty"])
def test_a_request_id_that_cannot_stand_in_a_log_is_replaced(serving: ModuleType, engine: AsyncEngine, identity: str) -> None:
    found = serving.App(engine).ask("GET", "/health", headers={"x-request-id": identity}).headers["x-request-id"]
    assert found.startswith("req-") and len(found) == 28


def test_a_web_page_may_ask_where_it_was_allowed(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, cors_origins=("https://page.example",), api_keys=(serving.KEY,))
    headers = {"origin": "https://page.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    before = app.ask("OPTIONS", TEXT, headers=headers)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, "https://page.example")
    refused = app.post(TEXT, SHORT, headers={"origin": "https://page.example", "authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page.example")
    assert "access-control-allow-origin" not in app.post(TEXT, SHORT, headers={**app.headers, "origin": "https://else.example"}).headers


METRICS = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:gpu_cache_usage_perc vllm:prompt_tokens_total
vllm:generation_tokens_total vllm:time_to_first_token_seconds_count vllm:time_per_output_token_seconds_count
vllm:inter_token_latency_seconds_count vllm:e2e_request_latency_seconds_count vllm:request_success_total vllm:num_preemptions_total
vllm:request_queue_time_seconds_count vllm:request_prefill_time_seconds_count vllm:request_decode_time_seconds_count
vllm:request_inference_time_seconds_count vllm:request_max_num_generation_tokens_count
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:cache_config_info inferplane:steps_total inferplane:kv_blocks
inferplane:kv_computed_blocks_total inferplane:engine_answers
""".split()


def test_metrics_have_vllm_s_names_and_count(serving: ModuleType, engine: AsyncEngine) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    app = serving.App(engine, served_model_names=("m",), max_queue=0)
    drawn = engine.stats().drawn_tokens
    for stream in (False, True):
        app.post(TEXT, {"prompt": "Once", "max_tokens": 40, "ignore_eos": True, "n": 2, "stream": stream})
    app.post(TEXT, {**SHORT, "n": 3})
    text = app.ask("GET", "/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {sample.name: sample.value for sample in samples}
    assert set(METRICS) <= set(values)
    assert all(sample.labels["model_name"] == "m" for sample in samples if sample.name.startswith(("vllm:", "inferplane:")))
    assert values["vllm:generation_tokens_total"] - drawn == 160
    assert 0 < values["vllm:inter_token_latency_seconds_count"] == values["vllm:time_per_output_token_seconds_count"] <= 78
    assert values["vllm:e2e_request_latency_seconds_count"] == values["vllm:time_to_first_token_seconds_count"] == 2
    phases = [values[f"vllm:request_{name}_time_seconds_sum"] for name in ("queue", "prefill", "decode")]
    assert min(phases) > 0 and sum(phases) == pytest.approx(values["vllm:e2e_request_latency_seconds_sum"])
    ended = {sample.labels["finished_reason"]: sample.value for sample in samples if sample.name == "vllm:request_success_total"}
    assert ended == {"stop": 0, "length": 4, "abort": 0}
    refused = {sample.labels["code"]: sample.value for sample in samples if sample.name == "inferplane:refusals_total"}
    assert refused == {"too_many_sequences": 1, "queue_full": 0, "rate_limit_exceeded": 0, "shutting_down": 0}


def test_a_scrape_does_not_wait_for_a_step_that_hangs(serving: ModuleType, engine: AsyncEngine) -> None:
    import threading

    app, released = serving.App(engine), threading.Event()
    app.ask("GET", "/metrics")
    engine.engine._post(released.wait)
    try:
        text = app.ask("GET", "/metrics").text
    finally:
        released.set()
    assert 'inferplane:engine_answers{model_name="tiny"} 0.0' in text
    assert "vllm:num_requests_running" in text


@pytest.mark.parametrize(("settings", "said"), [
    ({"port": 70000}, "setting port must be an integer"), ({"max_queue": -1}, "setting max_queue"),
    ({"drain_seconds": 0}, "setting drain_seconds must be seconds"), ({"tls_cert": "none.pem"}, "PEM file"),
    ({"log_format": "xml"}, "text or json"), ({"api_keys": ["secret", 3]}, "setting api_keys must be a list"),
    ({"host": ""}, "setting host"),
], ids=["port", "queue", "drain", "certificate", "log", "keys", "host"])
def test_a_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ServeConfig(**settings)
    assert "secret" not in str(caught.value)


def test_settings_come_from_options_then_environment_then_file(tmp_path: Any) -> None:
    from inferplane.core.config import EngineConfig
    from inferplane.core.env import Environment

    file = tmp_path / "serve.toml"
    file.write_text('[model]\nmax_model_len = 512\n[serve]\nport = 9000\nmax_queue = 7\napi_keys = ["file"]\n', encoding="utf-8")
    found = ServeConfig.resolve({"port": 9001, "host": None}, Environment(api_key="variable"), file)
    assert (found.port, found.max_queue, found.api_keys, found.host) == (9001, 7, ("variable",), "127.0.0.1")
    assert EngineConfig.resolve({"config": file}, Environment()).model.max_model_len == 512
    file.write_text("[serve]\nmax_queu = 7\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'max_queue'"):
        ServeConfig.resolve({}, Environment(), file)
