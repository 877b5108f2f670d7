"""Structured outputs: an answer follows its grammar at any temperature, and a grammar that cannot be used is one request's error."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from inferplane import LLM, SamplingParams, StructuredOutputs
from inferplane.core.structured import Guide
from inferplane.errors import RequestError
from inferplane.ops.sample import mask_words, masked

pytest.importorskip("llguidance")

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blü", "❤"]}, "maxItems": 3},
    },
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(platform="cpu", kv_cache_memory_gb=0.2) as llm:
        yield llm


def params(structured: StructuredOutputs, seed: int = 0, **changes: object) -> SamplingParams:
    return SamplingParams.from_kwargs(**{"temperature": 1.0, "max_tokens": 200, "seed": seed, "structured_outputs": structured, **changes})


def test_json_of_a_schema_is_valid_in_every_drawn_answer(llm: LLM) -> None:
    outputs = llm.generate(["Hello"] * 40, [params(StructuredOutputs(json=PERSON), seed) for seed in range(40)])
    answers = [one.outputs[0] for one in outputs if one.outputs[0].finish_reason == "stop"]
    assert len(answers) > 10
    for answer in answers:
        made = json.loads(answer.text)
        assert set(made) == {"name", "age", "tags"} and 0 <= made["age"] <= 150 and len(made["name"]) <= 12
        assert len(made["tags"]) <= 3 and set(made["tags"]) <= {"red", "blü", "❤"}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_regular_expression_holds_for_the_whole_answer(llm: LLM, temperature: float) -> None:
    number = StructuredOutputs(regex=r"\+[0-9]{3}-[a-f]{4}")
    outputs = llm.generate(["Call"] * 10, [params(number, seed, temperature=temperature) for seed in range(10)])
    assert all(re.fullmatch(r"\+[0-9]{3}-[a-f]{4}", one.outputs[0].text) for one in outputs)
    assert {one.outputs[0].finish_reason for one in outputs} == {"stop"}


def test_a_choice_and_a_grammar_are_followed(llm: LLM) -> None:
    choice, grammar = StructuredOutputs(choice=["yes", "no \"way\"", "пожалуй"]), StructuredOutputs(grammar='start: "<" /[0-9]+/ ">"')
    for seed in range(5):
        assert llm.generate("Well?", params(choice, seed))[0].outputs[0].text in ("yes", "no \"way\"", "пожалуй")
        text = llm.generate("Tag:", params(grammar, seed, max_tokens=60))[0].outputs[0].text
        assert re.fullmatch(r"<[0-9]+(>?)", text)


def test_neighbours_of_a_limited_request_draw_what_they_draw_alone(llm: LLM) -> None:
    free = SamplingParams(temperature=1.0, seed=3, max_tokens=20)
    [alone] = llm.generate("The river", free)
    limited = [params(StructuredOutputs(regex="[ab]{30}"), seed) for seed in range(3)]
    together = llm.generate(["Hello", "The river", "Hello", "Hello"], [limited[0], free, *limited[1:]])
    assert together[1].outputs[0].token_ids == alone.outputs[0].token_ids
    assert all(re.fullmatch("[ab]{30}", together[place].outputs[0].text) for place in (0, 2, 3))


def test_each_of_several_samples_has_a_place_of_its_own(llm: LLM) -> None:
    [answer] = llm.generate("Hello", params(StructuredOutputs(regex="[a-z]{12}"), n=4))
    texts = [one.text for one in answer.outputs]
    assert len(set(texts)) == 4 and all(re.fullmatch("[a-z]{12}", text) for text in texts)


def test_a_bias_against_what_the_grammar_demands_gives_way(llm: LLM) -> None:
    everything = dict.fromkeys(range(llm.engine.runner.loaded.model.vocab_size), -1e38)
    [answer] = llm.generate("Hello", params(StructuredOutputs(regex="abc"), logit_bias=everything, min_tokens=50))
    assert answer.outputs[0].text == "abc"


@pytest.mark.parametrize(("given", "words"), [
    ({}, "one of json, regex, choice and grammar; found none"), ({"json": {}, "regex": "a"}, "json and regex"),
    ({"json": "{"}, "must be a JSON schema"), ({"json": 7}, "must be a JSON schema"),
    ({"json": {"x": float("nan")}}, "must be a JSON schema"),
    ({"choice": []}, "at least one"), ({"choice": "yes"}, "list of strings"), ({"regex": ""}, "at least one character"),
])
def test_what_cannot_be_meant_is_refused_when_it_is_written(given: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        StructuredOutputs(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("structured", [
    StructuredOutputs(regex="(a"), StructuredOutputs(grammar="start: nothing"), StructuredOutputs(json={"type": "strin"}),
], ids=["regex", "grammar", "schema"])
def test_a_grammar_that_cannot_be_used_is_an_error_of_its_request_alone(llm: LLM, structured: StructuredOutputs) -> None:
    with pytest.raises(RequestError, match="grammar cannot be used"):
        llm.generate("Hello", params(structured))
    assert llm.generate("Hello", SamplingParams(max_tokens=3))[0].finished


def test_a_grammar_that_fails_underway_ends_its_own_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Guide.mask

    def fails(self: Guide, drawn: list[int]) -> object:
        made = right(self, drawn)
        if len(drawn) == 3:
            self.error = "the grammar could not be followed: planted"
        return made

    monkeypatch.setattr(Guide, "mask", fails)
    with pytest.raises(RequestError, match="planted"):
        llm.generate("Hello", params(StructuredOutputs(regex="a{20}")))
    monkeypatch.undo()
    assert llm.stats().kv.held_blocks == (0,) and llm.stats().running == 0
    assert llm.generate("Hello", SamplingParams(max_tokens=3))[0].finished


def test_ignore_eos_goes_with_no_grammar() -> None:
    with pytest.raises(RequestError, match="ignore_eos"):
        SamplingParams(ignore_eos=True, structured_outputs=StructuredOutputs(regex="a"))


def test_a_mask_forbids_each_token_whose_bit_is_zero() -> None:
    logits = np.arange(2 * 70, dtype=np.float32).reshape(2, 70)
    mask = np.full((2, mask_words(70)), -1, np.int32)
    mask[1, 1] = ~np.int32(1 << 5)
    made = masked(logits, mask)
    assert (made[0] == logits[0]).all()
    assert np.flatnonzero(np.isinf(made[1])).tolist() == [37]
