"""Mutated requests: whatever a client sends, it gets an answer or an error of OpenAI's shape, and no block stays held.

SERVE_FUZZ_REQUESTS says how many; a failure names the seed of its request.
"""
from __future__ import annotations

import asyncio
import copy
import json
import os
import random
from types import ModuleType
from typing import Any

from inferplane import AsyncEngine

REQUESTS = int(os.environ.get("SERVE_FUZZ_REQUESTS", "400"))
AT_ONCE = 16
REQUEST_SECONDS = 60.0
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}
DRAW = {"temperature": 1.0, "top_p": 0.9, "n": 2, "seed": 1, "stop": ["x", "."], "logit_bias": {"5": 1.5}, "stream": False,
        "stream_options": {"include_usage": True}, "presence_penalty": 0.5, "min_tokens": 1, "max_tokens": 4, "top_k": 4, "priority": 1}
CHAT = {**DRAW, "model": "tiny", "logprobs": True, "top_logprobs": 2, "tools": [TOOL], "tool_choice": "auto", "messages": [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "7"},
]}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT), ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {**DRAW, "prompt": ["Once", [74, 78]], "logprobs": 2}),
    ("/v1/completions", {**DRAW, "prompt": "Once", "stream": True, "echo": True}),
    ("/v1/completions", {**DRAW, "prompt": ["Once", [74, 78]], "echo": True, "logprobs": 1}),
    ("/v1/chat/completions", {**DRAW, "messages": [{"role": "user", "content": "Hello"}], "structured_outputs": {"regex": "[ab/]{2}"},
                              "tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
                                  "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}}),
    ("/v1/completions", {**DRAW, "prompt": "Once", "response_format": {"type": "grammar", "grammar": 'start: "a" | /b+/'}}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}], "instructions": "Be brief.",
                       "max_output_tokens": 4, "stream": True, "temperature": 0.5, "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": [
        {"role": "user", "content": "Hello"}, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "7"}]},
    ], "tools": [{"type": "function", **TOOL["function"], "strict": True}], "tool_choice": "auto", "parallel_tool_calls": True,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}, "max_output_tokens": 4}),
    ("/tokenize", {"prompt": "Once", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": CHAT["messages"], "chat_template_kwargs": {"a": 1}}),
    ("/detokenize", {"tokens": [74, 78, 306]}),
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -2**63, 2**70, 1e308, -0.0, 0.5,
    "", "a", "\x00", "\ud7ff\uffff", "🏽", "a" * 5000, "1", "null", "{{ messages }}", "<|im_end|>",
    [], {}, [[]], [{}], [None], {"a": None}, {"": ""}, [1, "a"], [5000], {"type": "text"}, {"role": "user"},
]


def mutated(seed: int) -> tuple[str, bytes]:
    """A path, and a body that was valid once."""
    draw = random.Random(seed)
    path, valid = draw.choice(VALID)
    body: Any = copy.deepcopy(valid)
    for _ in range(draw.randint(1, 3)):
        _mutate(draw, body)
    text = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode()
    if draw.random() < 0.15:
        at = draw.randrange(len(text))
        text = draw.choice([text[:at], text[:at] + bytes([draw.randrange(256)]) + text[at + 1:], text + text[at:], text[at:]])
    return path, text


def _mutate(draw: random.Random, body: Any) -> None:
    """Changes one place, as deep as chance leads."""
    place = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or draw.random() < 0.3:
            break
        place = place[key]
    kind = draw.randrange(5)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        name = draw.choice(["unknown", "", "type", "n", "best_of", "echo", "suffix", "response_format", str(key).upper()])
        place[name] = copy.deepcopy(draw.choice(ODD))
    elif kind == 2:
        place[key] = [place[key]]
    else:
        place[key] = copy.deepcopy(draw.choice(ODD))


def test_no_mutated_request_is_the_server_s_failure(serving: ModuleType) -> None:
    statuses: dict[int, int] = {}

    async def ask(http: Any, seed: int) -> None:
        path, body = mutated(seed)
        answer = await asyncio.wait_for(http.post(path, content=body, headers={"content-type": "application/json"}), REQUEST_SECONDS)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 404), f"seed {seed}: {path} {body!r} gave {answer.status_code} {answer.text}"
        if answer.status_code != 200:
            serving.assert_error(answer, answer.status_code)
        elif b"text/event-stream" in answer.headers["content-type"].encode():
            assert '{"error":{' not in answer.text, f"seed {seed}: {path} {body!r} gave {answer.text}"

    async def main(engine: AsyncEngine) -> None:
        app = serving.App(engine, max_output_tokens=6)
        async with app.http() as http:
            for start in range(0, REQUESTS, AT_ONCE):
                await asyncio.gather(*(ask(http, seed) for seed in range(start, min(REQUESTS, start + AT_ONCE))))

    engine = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.05)
    try:
        asyncio.run(main(engine))
        stats = engine.stats()
        assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0})
    finally:
        engine.close()
    assert statuses[200] > REQUESTS // 20 and statuses[400] > REQUESTS // 4, "most mutations are refused, and some are harmless"
