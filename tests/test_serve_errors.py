"""What the server refuses: always with OpenAI's shape of an error, never with a 5xx for what a client did wrong."""
from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import openai
import pytest
from inferplane import AsyncEngine

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "clock"}}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.02, max_num_seqs=8)
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(serving: ModuleType, engine: AsyncEngine) -> Any:
    return serving.App(engine, api_keys=(serving.KEY,), max_body_bytes=200_000, max_queue=100, max_output_tokens=500)


WRONG: dict[str, tuple[str, Any, str, str | None]] = {
    "no-messages": (CHAT, {}, "missing_required_parameter", "messages"),
    "no-turn": (CHAT, {"messages": []}, "invalid_value", "messages"),
    "a-role": (CHAT, {"messages": [{"role": "king", "content": "a"}]}, "invalid_value", "messages[0].role"),
    "a-picture": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
                  "unsupported_content", "messages[0].content"),
    "content-a-number": (CHAT, {"messages": [{"role": "user", "content": 7}]}, "invalid_type", "messages[0].content"),
    "unknown": (CHAT, {**HELLO, "temprature": 1}, "unknown_parameter", "temprature"),
    "a-number-as-text": (CHAT, {**HELLO, "temperature": "1"}, "invalid_type", "temperature"),
    "too-cold": (CHAT, {**HELLO, "temperature": -1}, "invalid_value", "temperature"),
    "top-p": (CHAT, {**HELLO, "top_p": 0}, "invalid_value", "top_p"),
    "top-k-beyond-any-token": (CHAT, {**HELLO, "top_k": 2**31}, "invalid_value", "top_k"),
    "no-answers": (CHAT, {**HELLO, "n": 0}, "invalid_value", "n"),
    "too-many-answers": (CHAT, {**HELLO, "n": 129}, "invalid_value", "n"),
    "answers-beyond-the-queue": (CHAT, {**HELLO, "n": 120}, "too_many_sequences", "n"),
    "no-tokens": (CHAT, {**HELLO, "max_tokens": 0}, "invalid_value", "max_tokens"),
    "more-than-the-server-gives": (CHAT, {**HELLO, "max_completion_tokens": 501}, "max_tokens_too_large", "max_tokens"),
    "fewest-above-most": (CHAT, {**HELLO, "max_tokens": 2, "min_tokens": 3}, "invalid_value", "min_tokens"),
    "top-logprobs-alone": (CHAT, {**HELLO, "top_logprobs": 2}, "invalid_value", "top_logprobs"),
    "bias-of-no-token": (CHAT, {**HELLO, "logit_bias": {"one": 1}}, "invalid_value", "logit_bias"),
    "bias-beyond-the-vocabulary": (CHAT, {**HELLO, "logit_bias": {"999999": 1}}, "invalid_value", "logit_bias"),
    "bias-too-strong": (CHAT, {**HELLO, "logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
    "a-huge-seed": (CHAT, {**HELLO, "seed": 2**70}, "invalid_value", "seed"),
    "an-empty-stop": (CHAT, {**HELLO, "stop": [""]}, "invalid_value", None),
    "a-call-of-no-tool": (CHAT, {**HELLO, "tool_choice": "required"}, "invalid_value", "tool_choice"),
    "a-call-of-an-unknown-tool": (
        CHAT, {**HELLO, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "invalid_value", "tool_choice"),
    "no-schema": (CHAT, {**HELLO, "response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
    "a-schema-that-is-none": (
        CHAT, {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}}, None, None),
    "a-schema-without-end": (
        CHAT, {**HELLO, "ignore_eos": True, "response_format": {"type": "json_object"}}, "invalid_value", "ignore_eos"),
    "metadata-without-end": (RESPONSES, {"input": "a", "metadata": {"a": 1}}, "invalid_type", "metadata.a"),
    "sound": (CHAT, {**HELLO, "modalities": ["audio"]}, "unsupported_value", "modalities"),
    "a-template's-own-variable": (CHAT, {**HELLO, "chat_template_kwargs": {"messages": []}}, "invalid_value", "chat_template_kwargs"),
    "too-long": (TEXT, {"prompt": [5] * 2048}, "context_length_exceeded", None),
    "too-long-for-the-rest": (TEXT, {"prompt": [5] * 2000, "max_tokens": 100}, "context_length_exceeded", None),
    "no-prompt": (TEXT, {}, "missing_required_parameter", "prompt"),
    "an-empty-prompt": (TEXT, {"prompt": ""}, "invalid_value", None),
    "no-ids": (TEXT, {"prompt": []}, "invalid_value", "prompt"),
    "a-negative-id": (TEXT, {"prompt": [1, -2]}, "invalid_value", "prompt[1]"),
    "an-id-beyond-the-vocabulary": (TEXT, {"prompt": [1, 5000]}, "invalid_value", None),
    "a-gap": (TEXT, {"prompt": "a", "suffix": "b"}, "unsupported_value", "suffix"),
    "the-best-of-many": (TEXT, {"prompt": "a", "best_of": 5}, "unsupported_value", "best_of"),
    "too-hot": (TEXT, {"prompt": "a", "temperature": 1e300}, "invalid_value", "temperature"),
    "an-answer-that-cannot-be": (TEXT, {"prompt": "a", "structured_outputs": {"json": False}}, "invalid_value", None),
    "a-stored-answer": (RESPONSES, {"input": "a", "previous_response_id": "r"}, "unsupported_value", "previous_response_id"),
    "to-be-stored": (RESPONSES, {"input": "a", "store": True}, "unsupported_value", "store"),
    "a-tool-of-a-response": (RESPONSES, {"input": "a", "tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
    "an-item": (RESPONSES, {"input": [{"type": "function_call_output", "output": "a"}]}, "unsupported_value", "input[0]"),
    "a-picture-of-a-response": (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
                                "unsupported_content", "input[0].content"),
    "nothing-to-tokenize": ("/tokenize", {}, "missing_required_parameter", "prompt"),
    "tokens-of-text": ("/detokenize", {"tokens": ["a"]}, "invalid_type", "tokens[0]"),
}


@pytest.mark.parametrize(("path", "body", "code", "param"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_wrong_request_is_a_400_that_names_the_parameter(
    app: Any, serving: ModuleType, path: str, body: Any, code: str, param: str | None, stream: bool,
) -> None:
    body = {**body, "stream": True} if stream and path in (CHAT, TEXT, RESPONSES) else body
    error = serving.assert_error(app.post(path, body), 400, code)
    assert error["param"] == param or param is None
    assert error["type"] == "invalid_request_error"


BOMBS = {
    "nothing": b"", "no-json": b"{", "a-list": b"[]", "a-number": b"1", "invalid-utf-8": b'{"prompt": "\xff\xfe"}',
    "half-a-surrogate": b'{"prompt": "\\ud800"}', "nan": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e999}', "minus-infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "deep": b'{"prompt": ' + b"[" * 90_000, "deep-and-closed": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep-objects": b'{"metadata": ' + b'{"a":' * 20_000, "a-long-number": b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
    "a-long-fraction": b'{"prompt": "a", "temperature": 0.' + b"9" * 100_000 + b"e99999999999}",
    "two-values": b'{"prompt": "a"}{}', "a-nul": b'{"prompt": "a"}\x00',
    "many-stops": json.dumps({"prompt": "a", "stop": ["s"] * 65}).encode(),
    "many-biases": json.dumps({"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}}).encode(),
    "many-prompts": json.dumps({"prompt": ["a"] * 2049}).encode(), "text-as-ids": b'{"prompt": ["a", [1], {}]}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES, "/tokenize", "/detokenize"])
def test_a_json_bomb_bounces(app: Any, serving: ModuleType, path: str, bomb: bytes) -> None:
    serving.assert_error(app.ask("POST", path, content=bomb, headers={**app.headers, **JSON}), 400)


def test_a_deep_tool_is_rendered_or_refused_but_harms_nobody(app: Any, serving: ModuleType) -> None:
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": deep}}}
    assert app.post(CHAT, {**HELLO, "tools": [tool], "max_tokens": 1}).status_code in (200, 400)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_beyond_the_limit_is_a_413(app: Any, serving: ModuleType, declared: bool) -> None:
    body = json.dumps({"prompt": "a" * 200_000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    answer = app.ask("POST", TEXT, content=body if declared else pieces(), headers={**app.headers, **JSON})
    serving.assert_error(answer, 413, "body_too_large")


@pytest.mark.parametrize(("headers", "status"), [
    pytest.param({"content-type": "text/plain"}, 415, id="plain-text"),
    pytest.param({}, 415, id="no-type"),
    pytest.param({**JSON, "content-encoding": "gzip"}, 415, id="compressed"),
    pytest.param({**JSON, "content-length": "9" * 40}, 413, id="a-length-that-lies"),
])
def test_a_body_must_be_plain_json(app: Any, serving: ModuleType, headers: dict[str, str], status: int) -> None:
    serving.assert_error(app.ask("POST", TEXT, content=b'{"prompt": "a"}', headers={**app.headers, **headers}), status)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/nothing", 404), ("GET", "/v1/models/none", 404), ("GET", CHAT, 405), ("DELETE", "/health", 405), ("POST", "/v1/models", 405),
    ("GET", "/v1/models/" + "a" * 10_000, 404), ("GET", "/%ff%00/../../etc/passwd", 404), ("GET", "/v1/models/", 404),
], ids=["path", "model", "get-for-post", "delete-for-get", "post-for-get", "long", "odd", "no-name"])
def test_a_path_or_method_that_is_not_there_has_the_same_shape(app: Any, serving: ModuleType, method: str, path: str, status: int) -> None:
    serving.assert_error(app.ask(method, path), status)


def test_a_model_that_is_not_served_is_the_client_s_not_found_error(app: Any, serving: ModuleType) -> None:
    async def main() -> None:
        async with app.client() as client:
            with pytest.raises(openai.NotFoundError, match="'gpt-5' does not exist. Served here: tiny") as caught:
                await client.chat.completions.create(model="gpt-5", **HELLO)
            assert caught.value.code == "model_not_found"

    serving.run(main())


@pytest.mark.parametrize("authorization", [
    "", "Bearer wrong", "Bearer", "Basic abc", "correct horse battery staple", "Bearer \xff\xfe", "Bearer " + "k" * 9000,
], ids=["none", "wrong", "empty", "basic", "bare", "bytes", "long"])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/tokenize", "/nothing"])
def test_without_the_key_nothing_opens(app: Any, serving: ModuleType, path: str, authorization: str) -> None:
    headers = {"authorization": authorization.encode("latin-1")} if authorization else {"authorization": ""}
    error = serving.assert_error(app.ask("POST", path, json=HELLO, headers=headers), 401, "invalid_api_key")
    assert serving.KEY not in json.dumps(error)


def test_a_wrong_key_is_the_client_s_authentication_error(app: Any, serving: ModuleType) -> None:
    async def main() -> None:
        async with app.client() as client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                await client.with_options(api_key="wrong").models.list()

    serving.run(main())


def test_what_nobody_foresaw_is_a_500_that_tells_nothing(
    serving: ModuleType, engine: AsyncEngine, caplog: pytest.LogCaptureFixture,
) -> None:
    app = serving.App(engine)

    class Broken:
        def check_model(self, name: str | None) -> None:
            raise ZeroDivisionError("a secret of the house")

    route = next(route for route in app.app.routes if route.path == TEXT)
    route.app.service = type("Service", (), {**vars(Broken), "config": app.service.config})()
    error = serving.assert_error(app.post(TEXT, {"prompt": "a"}), 500, "internal_error")
    assert "secret" not in error["message"]
    assert "ZeroDivisionError" in caplog.text


def test_after_all_of_this_the_engine_is_empty_and_answers(app: Any, engine: AsyncEngine) -> None:
    assert app.post(TEXT, {"prompt": "Once", "max_tokens": 3}).status_code == 200
    stats = engine.stats()
    assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0})
