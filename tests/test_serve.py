"""The OpenAI-compatible server, asked by OpenAI's own client and by plain requests, over the embedded model."""
from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane import AsyncEngine, SamplingParams

pytestmark = pytest.mark.usefixtures("nothing_leaks")
FOX = "blue fox 42"
LOUD = {"temperature": 1.5, "max_tokens": 24, "seed": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def app(serving: ModuleType, engine: AsyncEngine) -> Any:
    return serving.App(engine, api_keys=(serving.KEY,), served_model_names=("tiny", "other"))


def offline(engine: AsyncEngine, prompt: Any, serving: ModuleType, **params: Any) -> Any:
    """The same request without the server."""
    async def main() -> Any:
        return [output async for output in engine.generate(prompt, SamplingParams(**params))][-1]

    return serving.run(main())


def streamed(app: Any, serving: ModuleType, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = app.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    *events, last = serving.chunks(answer.text)
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_the_client_chats(app: Any, serving: ModuleType) -> None:
    async def main() -> Any:
        async with app.client() as client:
            return await client.chat.completions.create(model="tiny", **serving.CHAT)

    answer = serving.run(main())
    assert answer.choices[0].message.content == FOX
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason, answer.model) == ("assistant", "stop", "tiny")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_the_client_streams_a_chat_and_its_usage(app: Any, serving: ModuleType) -> None:
    async def main() -> list[Any]:
        async with app.client() as client:
            options = {"include_usage": True}
            stream = await client.chat.completions.create(model="tiny", **serving.CHAT, stream=True, stream_options=options)
            return [chunk async for chunk in stream]

    *chunks, last = serving.run(main())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FOX
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert last.choices == [] and last.usage.completion_tokens > 1
    assert all(chunk.usage is None for chunk in chunks)


def test_the_client_asks_for_a_response_and_follows_one(app: Any, serving: ModuleType) -> None:
    asked = {"model": "tiny", "input": "Repeat this: blue fox 42", "instructions": "Be brief.", "temperature": 0, "store": False}

    async def main() -> Any:
        async with app.client() as client:
            whole = await client.responses.create(**asked, top_logprobs=1)
            events = [event async for event in await client.responses.create(**asked, stream=True)]
            items = [{"role": "user", "content": "Hello"}, *whole.output,
                     {"role": "user", "content": [{"type": "input_text", "text": "Repeat this: blue fox 42"}]}]
            again = await client.responses.create(model="tiny", input=items, temperature=0, max_output_tokens=2)
            return whole, events, again

    whole, events, again = serving.run(main())
    assert (whole.output_text, whole.status, whole.output[0].content[0].logprobs[0].top_logprobs[0].token) == (FOX, "completed", "blue")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert "".join(event.delta for event in events[4:-4]) == events[-1].response.output_text == FOX
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (again.status, again.incomplete_details.reason, again.usage.output_tokens) == ("incomplete", "max_output_tokens", 2)


def test_the_client_lists_models_and_finds_each(app: Any, serving: ModuleType) -> None:
    async def main() -> Any:
        async with app.client() as client:
            return [one.id async for one in client.models.list()], await client.models.retrieve("other")

    names, other = serving.run(main())
    assert names == ["tiny", "other"]
    assert (other.id, other.max_model_len) == ("other", 2048)


def test_the_client_completes_several_prompts_in_their_order(app: Any, serving: ModuleType, engine: AsyncEngine) -> None:
    prompts = ["The code for amber is 7314. The code for amber is", "The code for cobalt is 2208. The code for cobalt is"]

    async def main() -> Any:
        async with app.client() as client:
            return await client.completions.create(model="tiny", prompt=prompts, n=2, temperature=0, max_tokens=5)

    answer = serving.run(main())
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [offline(engine, one, serving, temperature=0.0, max_tokens=5).outputs[0].text for one in prompts]
    assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert "7314" in expected[0]


@pytest.mark.parametrize("body", [
    pytest.param({"prompt": "Once"}, id="text"),
    pytest.param({"prompt": [74, 78, 306]}, id="ids"),
    pytest.param({"prompt": "Once", "n": 3}, id="several-answers"),
    pytest.param({"prompt": ["Once", [74, 78], "upon"], "n": 2}, id="several-prompts"),
    pytest.param({"prompt": "Once", "echo": True}, id="echo"),
    pytest.param({"prompt": ["Once", "upon"], "echo": True, "n": 2}, id="echo-of-several"),
    pytest.param({"prompt": ["Once upon", [74, 78, 306]], "echo": True, "n": 2, "logprobs": 3}, id="echo-with-logprobs"),
    pytest.param({"prompt": "Once", "stop": ["e", "the"], "ignore_eos": True}, id="stop"),
    pytest.param({"prompt": "Once", "logprobs": 3}, id="logprobs"),
    pytest.param({"prompt": "Once", "return_token_ids": True}, id="token-ids"),
    pytest.param({"prompt": "Once", "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.1}, id="penalties"),
    pytest.param({"prompt": "Once", "top_k": 5, "top_p": 0.9, "min_p": 0.01}, id="filters"),
    pytest.param({"prompt": "Once", "cache_salt": "mine", "priority": 3}, id="salt-and-priority"),
])
def test_a_stream_tells_what_the_whole_answer_says(app: Any, serving: ModuleType, body: dict[str, Any]) -> None:
    body = {**LOUD, **body}
    whole = app.post("/v1/completions", body).json()
    told: dict[int, dict[str, Any]] = {}
    for event in streamed(app, serving, "/v1/completions", body):
        for choice in event["choices"]:
            one = told.setdefault(choice["index"], {"text": "", "finish_reason": None, "token_ids": [], "tokens": [], "text_offset": []})
            one["text"] += choice["text"]
            one["finish_reason"] = one["finish_reason"] or choice["finish_reason"]
            one["token_ids"] += choice.get("token_ids", [])
            for name in ("tokens", "text_offset"):
                one[name] += (choice["logprobs"] or {}).get(name, [])
    assert sorted(told) == [choice["index"] for choice in whole["choices"]]
    for choice in whole["choices"]:
        one = told[choice["index"]]
        assert (one["text"], one["finish_reason"]) == (choice["text"], choice["finish_reason"])
        assert one["token_ids"] == choice.get("token_ids", [])
        assert one["tokens"] == (choice["logprobs"] or {}).get("tokens", [])
        assert one["text_offset"] == (choice["logprobs"] or {}).get("text_offset", [])


def test_a_seed_draws_what_it_draws_without_a_server(app: Any, serving: ModuleType, engine: AsyncEngine) -> None:
    answer = app.post("/v1/completions", {"prompt": "Once", "return_token_ids": True, "n": 2, **LOUD}).json()
    expected = offline(engine, "Once", serving, n=2, **LOUD)
    assert [choice["token_ids"] for choice in answer["choices"]] == [list(one.token_ids) for one in expected.outputs]
    assert answer["choices"][0]["token_ids"] != answer["choices"][1]["token_ids"]


@pytest.mark.parametrize("pieces", [(0xC3, 0xA9), (0xF0, 0x9F, 0x91, 0x8B)], ids=["two-bytes", "emoji"])
def test_a_character_is_never_split(app: Any, serving: ModuleType, engine: AsyncEngine, pieces: tuple[int, ...]) -> None:
    """Only single bytes of one character can be drawn, in any order."""
    character = bytes(pieces).decode()
    ids = engine.engine.tokenizer.encode(character)
    assert len(ids) == len(pieces)
    body = {"prompt": "x", "n": 16, "temperature": 6.0, "max_tokens": 100, "seed": 3, "return_token_ids": True,
            "logit_bias": {str(one): 100 for one in ids}}
    drawn: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for event in streamed(app, serving, "/v1/completions", body):
        for choice in event["choices"]:
            drawn.setdefault(choice["index"], []).extend(choice["token_ids"])
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    spelled = {index: b"".join(engine.engine.tokenizer.token_bytes(one) for one in tokens) for index, tokens in drawn.items()}
    assert texts == {index: made.decode("utf-8", "replace") for index, made in spelled.items()}
    assert sum(text.count(character) for text in texts.values()) > 2


def test_logprobs_of_a_chat_name_the_drawn_token_and_the_best(app: Any) -> None:
    body = {"messages": [{"role": "user", "content": "What is 47 + 38?"}], "temperature": 0, "logprobs": True, "top_logprobs": 2}
    content = app.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in content).startswith("85")
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert one["top_logprobs"][0]["logprob"] == one["logprob"] >= one["top_logprobs"][1]["logprob"]


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
def test_an_echo_has_the_log_probabilities_of_its_prompt(app: Any, engine: AsyncEngine, as_ids: bool) -> None:
    """As lm-eval-harness asks for them; the same prompts again, since what is cached has no logits."""
    from inferplane.core.score import logits

    texts = ["The code for amber is 7314. The code for amber is 7314", "h\u00e9llo \U0001f44b. " * 40]
    ids = [app.post("/tokenize", {"prompt": text}).json()["tokens"] for text in texts]
    body = {"prompt": ids if as_ids else texts, "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    for _ in range(2):
        choices = app.post("/v1/completions", body).json()["choices"]
        for text, tokens, choice in zip(texts, ids, choices, strict=True):
            found = choice["logprobs"]
            assert choice["text"].startswith(text)
            assert {len(values) for values in found.values()} == {len(tokens) + 1}
            assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
            exact = logits(engine.started.loaded, tokens).astype("float64")
            exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
            expected = [exact[place, token] for place, token in enumerate(tokens[1:])]
            assert found["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
            assert [max(best.values()) for best in found["top_logprobs"][1:-1]] == pytest.approx(exact[:-1].max(-1), abs=1e-4)
            assert found["text_offset"] == sorted(found["text_offset"]) and found["text_offset"][-1] == len(text)


def test_bias_and_fewest_tokens_change_what_is_drawn(app: Any) -> None:
    banned = app.post("/tokenize", {"prompt": "b"}).json()["tokens"]
    body = {"messages": [{"role": "user", "content": "Repeat this: blue fox 42"}], "temperature": 0}
    free = app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    spelled = app.post("/tokenize", {"prompt": free, "add_special_tokens": False}).json()["tokens"]
    biased = {**body, "logit_bias": {str(one): -100 for one in [*banned, spelled[0]]}}
    assert app.post("/v1/chat/completions", biased).json()["choices"][0]["message"]["content"] != free
    longer = app.post("/v1/chat/completions", {**body, "min_tokens": 30, "max_completion_tokens": 40}).json()
    assert 30 <= longer["usage"]["completion_tokens"] <= 40


def test_a_cached_prefix_is_told_and_a_salt_keeps_it_apart(app: Any) -> None:
    body = {"prompt": "The code for amber is 7314. " * 8, "max_tokens": 1}

    def cached(**more: Any) -> int:
        return int(app.post("/v1/completions", {**body, **more}).json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 0
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0


def test_usage_can_come_with_every_chunk(app: Any, serving: ModuleType) -> None:
    body = {**serving.CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    counts = [event["usage"]["completion_tokens"] for event in streamed(app, serving, "/v1/chat/completions", body)]
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_a_conversation_goes_on_with_what_clients_send_back(app: Any, serving: ModuleType) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {}}}}}
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = app.post("/v1/chat/completions", {"messages": messages, "tools": [tool], "temperature": 0, "max_tokens": 30})
    assert answer.status_code == 200, answer.text
    ids = app.post("/tokenize", {"messages": messages, "tools": [tool]}).json()["tokens"]
    text = app.post("/detokenize", {"tokens": ids}).json()["prompt"]
    assert all(said in text for said in ("Be brief.", '"arguments": {"city": "Paris"}', "sunny", "get_weather"))
    assert answer.json()["usage"]["prompt_tokens"] == len(ids)


def test_tokens_go_back_and_forth(app: Any) -> None:
    text = "héllo 👋🏽 <|im_end|>"
    made = app.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert app.post("/detokenize", {"tokens": made["tokens"]}).json() == {"prompt": text}


def test_the_description_names_every_path_and_its_references_hold(app: Any) -> None:
    document = app.ask("GET", "/openapi.json").json()
    routes = {(route.path.replace(":path", ""), min(route.methods)) for route in app.app.routes if route.include_in_schema}
    assert {(path, method.upper()) for path, methods in document["paths"].items() for method in methods} == routes
    text = json.dumps(document)
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert refs and refs <= set(document["components"]["schemas"])
    chat = document["components"]["schemas"]["ChatForm"]
    assert chat["required"] == ["messages"] and chat["additionalProperties"] is False


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics"])
def test_probes_need_no_key(app: Any, path: str) -> None:
    assert app.ask("GET", path, headers={"authorization": ""}).status_code == 200
