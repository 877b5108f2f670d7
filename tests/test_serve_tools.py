"""Tool calls and structured answers over HTTP: OpenAI's client, the embedded model, calls that are valid whatever is drawn."""
from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any, Literal

import openai
import pydantic
import pytest
from inferplane import AsyncEngine
from inferplane.errors import ConfigError
from inferplane.serving import turn
from inferplane.serving.config import ServeConfig
from inferplane.serving.service import Service

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("nothing_leaks")

WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
}}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {
    "type": "object", "required": ["zone"], "properties": {"zone": {"enum": ["UTC", "CET"]}}}}}
ASKED: Any = {"model": "tiny", "messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [WEATHER, CLOCK]}


def asked(app: Any, serving: ModuleType, **body: Any) -> Any:
    async def main() -> Any:
        async with app.client() as client:
            return await client.chat.completions.create(**{**ASKED, **body})

    return serving.run(main())


def told(app: Any, serving: ModuleType, **body: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with app.client() as client:
            return [chunk async for chunk in await client.chat.completions.create(**{**ASKED, **body}, stream=True)]

    chunks: list[Any] = serving.run(main())
    return chunks


def valid(name: str, arguments: str) -> bool:
    made = json.loads(arguments)
    if name == "clock":
        return set(made) == {"zone"} and made["zone"] in ("UTC", "CET")
    return name == "get_weather" and set(made) <= {"city", "days"} and len(made["city"]) <= 12 and 1 <= made.get("days", 1) <= 14


def test_the_model_calls_a_tool_when_it_wants_to(app: Any, serving: ModuleType) -> None:
    [choice] = asked(app, serving, temperature=0, tools=[WEATHER]).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] == "Paris"


class Colour(pydantic.BaseModel):
    name: Literal["red", "blue"]
    bright: bool


class GetWeather(pydantic.BaseModel):
    """The weather."""

    city: str


def test_the_client_s_own_helpers_make_objects_of_answers_and_calls(app: Any, serving: ModuleType) -> None:
    """They send strict schemas and read what comes, streamed or not, in both APIs."""
    tool = openai.pydantic_function_tool(GetWeather)
    flat: Any = {"type": "function", **tool["function"]}
    chat: Any = {"model": "tiny", "messages": ASKED["messages"], "temperature": 0}
    response: Any = {"model": "tiny", "input": ASKED["messages"][0]["content"], "temperature": 0, "store": False}

    async def main() -> None:
        async with app.client() as client:
            said = await client.chat.completions.parse(**chat, response_format=Colour)
            called = await client.chat.completions.parse(**chat, tools=[tool])
            assert isinstance(said.choices[0].message.parsed, Colour)
            assert called.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="Paris")
            async with client.chat.completions.stream(**chat, tools=[tool]) as stream:
                kinds = {event.type async for event in stream}
                [call] = (await stream.get_final_completion()).choices[0].message.tool_calls
            assert "tool_calls.function.arguments.delta" in kinds and call.function.parsed_arguments == GetWeather(city="Paris")
            assert isinstance((await client.responses.parse(**response, text_format=Colour)).output_parsed, Colour)
            async with client.responses.stream(**response, tools=[flat]) as events:
                kinds = {event.type async for event in events}
                [item] = (await events.get_final_response()).output
            assert "response.function_call_arguments.done" in kinds and json.loads(item.arguments) == {"city": "Paris"}

    serving.run(main())


def test_a_streamed_call_is_the_whole_one_in_pieces(app: Any, serving: ModuleType) -> None:
    [whole] = asked(app, serving, temperature=0, tools=[WEATHER]).choices
    chunks = told(app, serving, temperature=0, tools=[WEATHER])
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.id is not None for call in calls] == [True] + [False] * (len(calls) - 1)
    assert calls[0].function.name == "get_weather" and len(calls) > 3
    assert "".join(call.function.arguments for call in calls) == whole.message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}], ids=["required", "named"])
def test_a_demanded_call_is_valid_in_every_draw(app: Any, serving: ModuleType, choice: Any) -> None:
    answers = [asked(app, serving, temperature=1, n=50, seed=seed, tool_choice=choice, max_tokens=300, parallel_tool_calls=False)
               for seed in range(10)]
    ended = [one for answer in answers for one in answer.choices if one.finish_reason != "length"]
    assert len(ended) > 450, "of 500"
    for one in ended:
        assert one.finish_reason == "tool_calls" and one.message.content is None
        [call] = one.message.tool_calls
        assert valid(call.function.name, call.function.arguments) and (choice == "required" or call.function.name == "clock")


def test_no_tool_is_called_when_none_may_be(app: Any, serving: ModuleType) -> None:
    [choice] = asked(app, serving, temperature=0, tool_choice="none", max_tokens=20).choices
    assert choice.message.tool_calls is None and choice.finish_reason in ("stop", "length")


def test_an_answer_in_a_format_follows_its_schema(app: Any, serving: ModuleType) -> None:
    schema = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}, "additionalProperties": False}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = asked(app, serving, tools=None, response_format=named, temperature=1, n=8, seed=1, max_tokens=40)
    made = [json.loads(one.message.content) for one in answer.choices if one.finish_reason == "stop"]
    assert made and all(set(one) == {"ok"} and isinstance(one["ok"], bool) for one in made)
    free = asked(app, serving, tools=None, response_format={"type": "json_object"}, temperature=1, n=4, seed=1, max_tokens=120)
    assert all(isinstance(json.loads(one.message.content), dict) for one in free.choices if one.finish_reason == "stop")


ROME: Any = {"type": "function", "function": {**WEATHER["function"], "parameters": {
    "type": "object", "required": ["city"], "properties": {"city": {"enum": ["Rome", "Oslo"]}}}}}
STRICT: Any = {"type": "function", "function": {**ROME["function"], "strict": True}}
OK = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}, "additionalProperties": False}
FOX = [{"role": "user", "content": "Repeat this: blue fox 42"}]


def allowing(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_only_allowed_tools_are_called(app: Any, serving: ModuleType) -> None:
    [free] = asked(app, serving, temperature=0, tool_choice=allowing("auto", "clock", "get_weather")).choices
    assert free.message.tool_calls[0].function.name == "get_weather"
    answer = asked(app, serving, temperature=1, n=20, seed=1, tool_choice=allowing("required", "clock"), max_tokens=300)
    calls = [call for one in answer.choices if one.finish_reason == "tool_calls" for call in one.message.tool_calls]
    assert len(calls) > 10 and {call.function.name for call in calls} == {"clock"}
    answer = asked(app, serving, temperature=1, n=20, seed=1, tool_choice=allowing("auto", "clock"), max_tokens=60)
    assert "get_weather" not in {call.function.name for one in answer.choices for call in one.message.tool_calls or ()}


@pytest.mark.parametrize("choice", [
    allowing("auto"), allowing("always", "clock"), allowing("auto", "no"), {"type": "allowed_tools"},
    {"type": "allowed_tools", "tools": [1]},
], ids=["none", "mode", "unknown", "bare", "no-objects"])
def test_allowed_tools_that_cannot_be_meant_are_refused(app: Any, serving: ModuleType, choice: Any) -> None:
    refused = app.post("/v1/chat/completions", {**ASKED, "tool_choice": choice})
    assert serving.assert_error(refused, 400, "invalid_value")["param"] == "tool_choice"


PLATE = r"[A-Z]{2}-\d{3}/[ab]"
LIST = 'start: "[" NUMBER ("," NUMBER){2} "]"\nNUMBER: /[1-9][0-9]{0,2}/'


@pytest.mark.parametrize(("body", "pattern"), [
    ({"response_format": {"type": "regex", "regex": PLATE}}, PLATE),
    ({"response_format": {"type": "grammar", "grammar": LIST}}, r"\[\d+,\d+,\d+\]"),
    ({"structured_outputs": {"regex": PLATE}}, PLATE),
    ({"structured_outputs": {"choice": ["yes", "no/perhaps"]}}, "yes|no/perhaps"),
    ({"structured_outputs": {"grammar": LIST}}, r"\[\d+,\d+,\d+\]"),
    ({"structured_outputs": {"json": {"const": 7}}}, "7"),
], ids=["regex", "grammar", "vllm-regex", "choice", "vllm-grammar", "vllm-json"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_follows_a_regular_expression_or_a_grammar(app: Any, path: str, body: Any, pattern: str) -> None:
    asked = {"messages": FOX} if "chat" in path else {"prompt": "Once"}
    answer = app.post(path, {**asked, **body, "temperature": 1.2, "n": 8, "seed": 1, "max_tokens": 30}).json()
    said = [one["message"]["content"] if "chat" in path else one["text"] for one in answer["choices"]]
    assert {one["finish_reason"] for one in answer["choices"]} == {"stop"}
    assert all(re.fullmatch(pattern, one) for one in said), said


def test_beside_tools_an_answer_follows_a_regular_expression_or_is_a_call(app: Any, serving: ModuleType) -> None:
    body = {"tools": [ROME], "extra_body": {"structured_outputs": {"regex": PLATE}}}
    [called] = asked(app, serving, temperature=0, **body).choices
    assert called.message.tool_calls and called.message.content is None
    answer = asked(app, serving, temperature=1.5, n=16, seed=1, messages=FOX, max_tokens=120, **body)
    said = [one.message.content for one in answer.choices if one.finish_reason == "stop"]
    assert said and all(re.fullmatch(PLATE, one) for one in said)
    grammar = {**ASKED, "response_format": {"type": "grammar", "grammar": LIST}}
    assert "tool_choice none" in serving.assert_error(app.post("/v1/chat/completions", grammar), 400)["message"]


@pytest.mark.parametrize("body", [
    {"response_format": {"type": "regex"}}, {"response_format": {"type": "regex", "regex": "("}},
    {"response_format": {"type": "grammar", "grammar": "start: nothing"}}, {"structured_outputs": {}},
    {"structured_outputs": {"regex": "a", "choice": ["a"]}}, {"structured_outputs": {"choice": []}}, {"structured_outputs": {"ebnf": "a"}},
    {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
], ids=["no-regex", "broken-regex", "broken-grammar", "nothing", "two", "no-choice", "unknown", "both"])
def test_an_answer_that_cannot_be_meant_is_refused(app: Any, serving: ModuleType, body: Any) -> None:
    serving.assert_error(app.post("/v1/chat/completions", {"messages": FOX, **body}), 400)


def test_a_strict_function_is_called_as_its_schema_says_or_not_at_all(app: Any, serving: ModuleType) -> None:
    """Paris is what was asked for: without `strict` the model says so."""
    [free] = asked(app, serving, temperature=0, tools=[ROME]).choices
    assert json.loads(free.message.tool_calls[0].function.arguments)["city"] == "Paris"
    [held] = asked(app, serving, temperature=0, tools=[STRICT]).choices
    assert json.loads(held.message.tool_calls[0].function.arguments)["city"] in ("Rome", "Oslo")
    assert held.finish_reason == "tool_calls"
    [words] = asked(app, serving, temperature=0, tools=[STRICT], messages=FOX, max_tokens=40).choices
    [loose] = asked(app, serving, temperature=0, tools=[ROME], messages=FOX, max_tokens=40).choices
    assert words.message.content == loose.message.content, "what is no call is as free as ever"


def test_strict_calls_are_valid_in_every_draw(app: Any, serving: ModuleType) -> None:
    answer = asked(app, serving, temperature=1.3, n=20, seed=3, tools=[STRICT], max_tokens=200)
    calls = [call for one in answer.choices if one.finish_reason == "tool_calls" for call in one.message.tool_calls]
    assert len(calls) > 3 and all(json.loads(call.function.arguments)["city"] in ("Rome", "Oslo") for call in calls)


def test_beside_tools_an_answer_follows_its_format_or_is_a_call(app: Any, serving: ModuleType) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": OK}}
    [called] = asked(app, serving, temperature=0, tools=[ROME], response_format=named).choices
    assert called.message.tool_calls and called.message.content is None
    answer = asked(app, serving, temperature=1.5, n=16, seed=1, tools=[ROME], response_format=named, messages=FOX, max_tokens=120)
    ended = [one for one in answer.choices if one.finish_reason != "length"]
    said = [json.loads(one.message.content) for one in ended if one.finish_reason == "stop"]
    assert said and all(set(one) == {"ok"} for one in said) and all(one.message.tool_calls for one in ended if one.message.content is None)


def test_log_probabilities_and_tokens_of_a_call_are_told_once(app: Any, serving: ModuleType) -> None:
    chunks = told(app, serving, temperature=0, tools=[WEATHER], logprobs=True, extra_body={"return_token_ids": True})
    drawn = sum(len(chunk.choices[0].logprobs.content) for chunk in chunks if chunk.choices[0].logprobs)
    assert drawn == sum(len(chunk.choices[0].model_extra.get("token_ids", ())) for chunk in chunks) > 10


@pytest.mark.parametrize(("marks", "tokens"), [(("<tool_call>", "</tool_call>"), None), (("blue", "42"), (2, 6))], ids=["tokens", "text"])
def test_tokens_of_thoughts_are_counted(app: Any, serving: ModuleType, monkeypatch: pytest.MonkeyPatch, marks: Any, tokens: Any) -> None:
    """The embedded model does not think, so that something else that it writes counts as its thoughts."""
    monkeypatch.setattr(turn, "THOUGHTS", (marks,))
    monkeypatch.setitem(app.service.__dict__, "templates", (*app.service.templates, " ".join(marks)))
    body = {"tools": [WEATHER]} if tokens is None else {"tools": [], "messages": FOX}
    answer = asked(app, serving, temperature=0, extra_body={"return_token_ids": True}, **body)
    drawn = answer.choices[0].model_extra["token_ids"]
    if tokens is None:
        end = drawn.index(app.service.tokenizer.added_id(marks[1])) + 1
        tokens = (end, end)
    thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert answer.choices[0].message.reasoning_content and tokens[0] <= thought <= tokens[1] < len(drawn)
    *_, last = told(app, serving, temperature=0, stream_options={"include_usage": True}, **body)
    assert last.usage.completion_tokens_details.reasoning_tokens == thought
    items = [{"type": "function", **WEATHER["function"]}] if body["tools"] else []
    response = app.post("/v1/responses", {"input": ASKED["messages"][0]["content"] if items else FOX[0]["content"], "tools": items,
                                          "temperature": 0}).json()
    assert response["output"][0]["type"] == "reasoning"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == thought


def test_an_unknown_format_of_calls_is_told_at_the_start(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigError, match="hermes"):
        Service.of(engine, ServeConfig(tool_format="herms"))
