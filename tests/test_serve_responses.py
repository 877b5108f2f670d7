"""Tools, formats and thoughts in /v1/responses, with OpenAI's client and the embedded model."""
from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import openai
import pytest
from inferplane.serving.routes.response_output import Output
from inferplane.serving.stream import Event
from inferplane.serving.turns.reader import Arguments, Call, Thought, Words

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("nothing_leaks")

WEATHER: Any = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": {
    "type": "object", "required": ["city"], "properties": {"city": {"type": "string", "maxLength": 12}}}}
CLOCK: Any = {"type": "function", "name": "clock", "parameters": {
    "type": "object", "required": ["zone"], "properties": {"zone": {"enum": ["UTC", "CET"]}}}}
ASKED: Any = {"model": "tiny", "input": "What is the weather in Paris?", "tools": [WEATHER], "temperature": 0, "store": False}
CALLED = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'}


def asked(app: Any, serving: ModuleType, **body: Any) -> Any:
    async def main() -> Any:
        async with app.client() as client:
            return await client.responses.create(**{**ASKED, **body})

    return serving.run(main())


def told(app: Any, serving: ModuleType, **body: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with app.client() as client:
            return [event async for event in await client.responses.create(**{**ASKED, **body}, stream=True)]

    events: list[Any] = serving.run(main())
    return events


def prompt(app: Any, serving: ModuleType, items: list[Any]) -> int:
    return int(asked(app, serving, input=items, max_output_tokens=1).usage.input_tokens)


def test_the_model_calls_a_tool_and_goes_on_from_its_result(app: Any, serving: ModuleType) -> None:
    answer = asked(app, serving)
    [call] = answer.output
    assert (call.type, call.name, json.loads(call.arguments), answer.status) == (
        "function_call", "get_weather", {"city": "Paris"}, "completed")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}
    items = [{"role": "user", "content": ASKED["input"]}, call, result]
    again = asked(app, serving, input=items, max_output_tokens=40)
    assert again.output and again.usage.input_tokens > answer.usage.total_tokens


def test_a_streamed_call_is_the_whole_one_in_events(app: Any, serving: ModuleType) -> None:
    [whole] = asked(app, serving).output
    events = told(app, serving)
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    deltas = events[3:-3]
    assert {event.type for event in deltas} == {"response.function_call_arguments.delta"} and len(deltas) > 3
    assert "".join(event.delta for event in deltas) == events[-3].arguments == whole.arguments
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[2].item.id == events[-2].item.id == deltas[0].item_id and events[2].item.arguments == ""
    assert events[-1].response.output == [events[-2].item]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "clock"}], ids=["required", "named"])
def test_a_demanded_call_is_valid_in_every_draw(app: Any, serving: ModuleType, choice: Any) -> None:
    answers = [asked(app, serving, temperature=1, extra_body={"seed": seed}, tools=[WEATHER, CLOCK], tool_choice=choice,
                     parallel_tool_calls=False, max_output_tokens=200) for seed in range(6)]
    ended = [answer for answer in answers if answer.status == "completed"]
    assert len(ended) > 3
    for answer in ended:
        [call] = answer.output
        made = json.loads(call.arguments)
        assert (call.name == "clock" and made["zone"] in ("UTC", "CET")) or (choice == "required" and len(made["city"]) <= 12)


def test_no_tool_is_called_when_none_may_be(app: Any, serving: ModuleType) -> None:
    answer = asked(app, serving, tool_choice="none", max_output_tokens=12)
    assert [item.type for item in answer.output] == ["message"]
    assert answer.usage.input_tokens < asked(app, serving, max_output_tokens=1).usage.input_tokens, "it is not told of the tool"


def test_text_follows_a_schema(app: Any, serving: ModuleType) -> None:
    schema = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}, "additionalProperties": False}
    named = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    made = asked(app, serving, tools=[], text={"format": named}, temperature=1, max_output_tokens=60, extra_body={"seed": 1})
    assert made.status == "completed" and isinstance(json.loads(made.output_text)["ok"], bool)
    assert made.text.format.name == "answer"
    free = asked(app, serving, tools=[], text={"format": {"type": "json_object"}}, max_output_tokens=200)
    assert free.status == "incomplete" or isinstance(json.loads(free.output_text), dict)


def test_calls_and_thoughts_of_one_turn_are_one_turn_again(app: Any, serving: ModuleType) -> None:
    """However a client splits it into items, the model sees the conversation as it was."""
    user = {"role": "user", "content": "What is the weather in Paris?"}
    words = {"role": "assistant", "content": "I ask."}
    output = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]}
    chat = [user, {**words, "tool_calls": [{"id": "c1", "type": "function", "function": {
        "name": "get_weather", "arguments": CALLED["arguments"]}}]}, {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]
    tool = {"type": "function", "function": {name: value for name, value in WEATHER.items() if name != "type"}}
    expected = app.post("/tokenize", {"messages": chat, "tools": [tool]}).json()["count"]
    assert prompt(app, serving, [user, words, CALLED, output]) == expected
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    assert prompt(app, serving, [user, thought, words, CALLED, output]) == expected, "this model's template leaves thoughts out"
    assert prompt(app, serving, [user, words, words, CALLED, output]) > expected, "two answers are two turns"


def test_thoughts_words_and_calls_are_items_in_their_order() -> None:
    events: list[Event] = []

    def tell(kind: str, **fields: Any) -> Event:
        return Event({"type": kind, **fields}, kind)

    output = Output(tell)
    events += output.take([Thought("Cold"), Thought("?"), Words("So"), Words(":")], [{"token": "a"}])
    events += output.take([Call(0, "f"), Arguments(0, "{}"), Call(1, "g"), Arguments(1, "{")], [])
    events += output.end(cut=True)
    told = output.told()
    assert [(item["type"], item["status"]) for item in told] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"), ("function_call", "incomplete")]
    assert told[0]["content"] == [{"type": "reasoning_text", "text": "Cold?"}]
    assert told[1]["content"][0]["text"] == "So:" and told[1]["content"][0]["logprobs"] == [{"token": "a"}]
    added = [event.data["output_index"] for event in events if event.name == "response.output_item.added"]
    done = [event.data["item"] for event in events if event.name == "response.output_item.done"]
    assert added == [0, 1, 2, 3] and done == told


def test_only_allowed_tools_are_called(app: Any, serving: ModuleType) -> None:
    def calls(mode: str) -> set[str]:
        choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "clock"}]}
        answers = [asked(app, serving, tools=[WEATHER, CLOCK], tool_choice=choice, temperature=1, max_output_tokens=100, extra_body={
            "seed": seed}) for seed in range(4)]
        return {item.name for answer in answers for item in answer.output if item.type == "function_call"}

    assert calls("required") == {"clock"}
    assert calls("auto") <= {"clock"}


def test_an_answer_follows_a_regular_expression(app: Any, serving: ModuleType) -> None:
    text: Any = {"format": {"type": "regex", "regex": "(red|blue) fox"}}
    assert asked(app, serving, tools=[], text=text, temperature=1).output_text in ("red fox", "blue fox")
    with pytest.raises(openai.BadRequestError, match="text.format must be of type"):
        asked(app, serving, text={"format": {"type": "regex"}})
