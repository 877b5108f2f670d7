"""Drawing through the whole engine: each parameter against its formula in plain NumPy, and random numbers that nobody else changes."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.core import score
from inferplane.ops.threefry import uniforms

PROMPT = list(range(20, 50))
DRAWN = SamplingParams(temperature=1.0, seed=123, max_tokens=24)
SEEDS = (0, 1, -1, 2**63, 2**40 + 7)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=["reference", "cpu"])
def llm(request: pytest.FixtureRequest, small_models: ModuleType) -> Iterator[LLM]:
    """A small random model with a full and a sliding group."""
    with small_models.random_llm("full-and-sliding", request.param) as made:
        yield made


def tokens(llm: LLM, params: SamplingParams, prompt: Sequence[int] = PROMPT) -> list[int]:
    return list(llm.generate(list(prompt), params)[0].outputs[0].token_ids)


def filtered(logits: Array, params: SamplingParams, seen: set[int], drawn: Counter[int]) -> Array:
    """[vocab] float64: penalties, bias, temperature, top-k, top-p, min-p, one after the other, token by token."""
    scores = logits.astype(np.float64)
    for token in range(len(scores)):
        if token in seen:
            scores[token] = scores[token] / params.repetition_penalty if scores[token] > 0 else scores[token] * params.repetition_penalty
        scores[token] -= params.frequency_penalty * drawn[token] + params.presence_penalty * (drawn[token] > 0)
        scores[token] += dict(params.logit_bias or ()).get(token, 0.0)
    scores /= params.temperature or 1.0
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    kept = order[: params.top_k or None]
    probabilities = np.exp(scores[kept] - scores[kept[0]])
    probabilities /= probabilities.sum()
    nucleus, total = [], 0.0
    for token, probability in zip(kept, probabilities, strict=True):
        if total >= params.top_p and nucleus:
            break
        nucleus.append(token)
        total += probability
    least = np.log(params.min_p) + scores[order[0]] if params.min_p else -np.inf
    masked = np.full(len(scores), -np.inf)
    for token in nucleus:
        if scores[token] >= least:
            masked[token] = scores[token]
    return masked


def expected(llm: LLM, params: SamplingParams, index: int = 0) -> list[int]:
    """The answer, drawn here from the logits that scoring gives, with the documented key of the random numbers."""
    sequence = list(PROMPT)
    seed = (params.seed or 0) & (2**64 - 1)
    words = [np.array([word], np.uint32) for word in (seed & 0xFFFFFFFF, seed >> 32, index)]
    for _ in range(params.max_tokens or 0):
        drawn = sequence[len(PROMPT):]
        scores = filtered(score.logits(llm.loaded, sequence)[-1], params, set(sequence), Counter(drawn))
        if params.temperature:
            uniform = uniforms(*words, np.array([len(sequence)], np.uint32), vocab=len(scores))[0].astype(np.float64)
            scores -= np.log(-np.log(uniform))
        sequence.append(int(np.argmax(scores)))
    return sequence[len(PROMPT):]


FORMULAS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.2},
    "top-k": {"top_k": 4, "temperature": 2.0},
    "top-p": {"top_p": 0.4, "temperature": 2.0},
    "min-p": {"min_p": 0.2, "temperature": 2.0},
    "all-filters": {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 2.5},
    "repetition": {"repetition_penalty": 1.7, "temperature": 0.0},
    "repetition-rewarded": {"repetition_penalty": 0.6, "temperature": 0.0},
    "frequency": {"frequency_penalty": 1.1, "temperature": 0.0},
    "presence": {"presence_penalty": 1.9, "temperature": 0.0},
    "presence-rewarded": {"presence_penalty": -2.0, "temperature": 0.7},
    "all-penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.5, "temperature": 0.8, "top_k": 20},
    "bias": {"logit_bias": {3: 4.0, 5: 3.5, 7: -2.0}, "temperature": 1.5},
    "bias-and-penalties": {"logit_bias": {3: 6.0, 5: 6.0}, "frequency_penalty": 2.0, "temperature": 0.0},
}


@pytest.mark.parametrize("parameters", FORMULAS.values(), ids=FORMULAS)
def test_a_draw_is_what_the_formula_says(llm: LLM, parameters: dict[str, Any]) -> None:
    params = replace(DRAWN, max_tokens=12, **parameters)
    assert tokens(llm, params) == expected(llm, params)


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_the_key_is_the_seed_the_sample_and_the_position(llm: LLM, seed: int) -> None:
    params = SamplingParams(temperature=1.0, seed=seed, n=2, max_tokens=6)
    samples = [list(one.token_ids) for one in llm.generate(PROMPT, params)[0].outputs]
    assert samples == [expected(llm, params, index) for index in range(2)]


def test_different_seeds_draw_different_tokens(llm: LLM) -> None:
    assert len({tuple(tokens(llm, replace(DRAWN, seed=seed))) for seed in SEEDS}) == len(SEEDS)


def test_top_k_one_is_greedy(llm: LLM) -> None:
    assert tokens(llm, replace(DRAWN, top_k=1, temperature=5.0)) == tokens(llm, replace(DRAWN, temperature=0.0))


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"top_k": 1000}, {"top_p": 1.0}, {"min_p": 0.0}], ids=str)
def test_a_filter_that_is_off_changes_nothing(llm: LLM, off: dict[str, Any]) -> None:
    assert tokens(llm, replace(DRAWN, **off)) == tokens(llm, DRAWN)


@pytest.mark.parametrize("temperature", [0.0, 2.0], ids=["greedy", "drawn"])
def test_a_bias_forbids_and_forces(llm: LLM, temperature: float) -> None:
    params = replace(DRAWN, temperature=temperature, max_tokens=10)
    assert tokens(llm, replace(params, logit_bias={17: 1000.0})) == [17] * 10
    common = set(tokens(llm, params))
    assert not common & set(tokens(llm, replace(params, logit_bias=dict.fromkeys(common, -1000.0))))


# Log-probabilities


@pytest.mark.parametrize("asked", [None, 0, 1, 5, -1, 10_000], ids=lambda asked: f"logprobs-{asked}")
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "drawn"])
def test_log_probabilities_are_those_of_the_model(llm: LLM, asked: int | None, temperature: float) -> None:
    params = replace(DRAWN, temperature=temperature, max_tokens=8, logprobs=asked, top_k=3, logit_bias={3: 2.0}, frequency_penalty=0.3)
    [output] = llm.generate(PROMPT, params)[0].outputs
    if asked is None:
        assert output.logprobs is None and output.cumulative_logprob is None
        return
    vocab = llm.loaded.model.vocab_size
    count = vocab if asked == -1 else min(asked, vocab)
    logits = score.logits(llm.loaded, [*PROMPT, *output.token_ids[:-1]])[len(PROMPT) - 1:].astype(np.float64)
    normal = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert len(output.logprobs) == len(output.token_ids)
    for token, told, row in zip(output.token_ids, output.logprobs, normal, strict=True):
        best = sorted(range(vocab), key=lambda one: (-row[one], one))[:count]
        assert list(told) == [token, *(one for one in best if one != token)]
        assert [told[one].rank for one in best] == list(range(1, count + 1))
        assert token in best or told[token].rank is None
        assert np.allclose([entry.logprob for entry in told.values()], row[list(told)], atol=1e-4)
        assert count < vocab or np.isclose(sum(np.exp(entry.logprob) for entry in told.values()), 1.0, atol=1e-5)
    drawn = [told[token].logprob for token, told in zip(output.token_ids, output.logprobs, strict=True)]
    assert np.isclose(output.cumulative_logprob, sum(drawn))


def test_neighbours_that_ask_for_other_log_probabilities_get_their_own(llm: LLM) -> None:
    prompts = [PROMPT[: 3 + 4 * i] for i in range(5)]
    params = [replace(DRAWN, seed=i, max_tokens=5 + i, logprobs=asked) for i, asked in enumerate((3, None, -1, 0, 1))]
    together = [output.outputs[0] for output in llm.generate(prompts, params)]
    alone = [llm.generate(prompt, one)[0].outputs[0] for prompt, one in zip(prompts, params, strict=True)]
    for found, expect in zip(together, alone, strict=True):
        assert found.token_ids == expect.token_ids
        for mine, theirs in zip(found.logprobs or (), expect.logprobs or (), strict=True):
            assert [(token, entry.rank) for token, entry in mine.items()] == [(token, entry.rank) for token, entry in theirs.items()]
            assert np.allclose([entry.logprob for entry in mine.values()], [entry.logprob for entry in theirs.values()], atol=1e-4)


def test_decoded_tokens_are_told() -> None:
    with LLM(platform="cpu", dtype="float32") as llm:
        [output] = llm.generate("Once", SamplingParams(temperature=0.0, max_tokens=3, logprobs=2))[0].outputs
        for told in output.logprobs:
            for token, entry in told.items():
                assert entry.decoded_token == llm.tokenizer.decode([token], skip_special_tokens=False)


# Nobody else changes a request's random numbers


NEIGHBOURS: dict[str, dict[str, Any]] = {
    "drawn": {}, "greedy": {"temperature": 0.0}, "top-k": {"top_k": 2}, "top-p": {"top_p": 0.3}, "min-p": {"min_p": 0.3},
    "penalties": {"frequency_penalty": 2.0, "repetition_penalty": 1.5}, "bias": {"logit_bias": {3: 50.0}}, "other-seed": {"seed": 9},
    "many": {"n": 5}, "logprobs": {"logprobs": -1},
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("mine", [{}, {"top_k": 5, "top_p": 0.9}, {"presence_penalty": 1.0}], ids=["plain", "filtered", "penalized"])
def test_a_neighbour_changes_nothing(llm: LLM, mine: dict[str, Any], neighbour: dict[str, Any]) -> None:
    params = replace(DRAWN, **mine)
    alone = tokens(llm, params)
    outputs = llm.generate([[8, 9], PROMPT, [10] * 33], [replace(DRAWN, **neighbour), params, replace(DRAWN, **neighbour)])
    assert list(outputs[1].outputs[0].token_ids) == alone


def test_one_seed_gives_one_answer_alone_in_a_batch_after_preemption_and_on_any_platform(small_models: ModuleType) -> None:
    prompts = [PROMPT[: 4 + 5 * i] for i in range(6)]
    params = [replace(DRAWN, seed=i, max_tokens=50, temperature=(1.0, 0.0)[i == 3]) for i in range(6)]
    answers: dict[tuple[str, str], list[list[int]]] = {}
    for platform in ("reference", "cpu"):
        with small_models.random_llm("full", platform, max_num_seqs=1) as llm:
            answers[platform, "alone"] = [tokens(llm, one, prompt) for prompt, one in zip(prompts, params, strict=True)]
            groups = llm.loaded.model.states
        with small_models.random_llm("full", platform) as llm:
            answers[platform, "batch"] = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]
        memory = small_models.pool_gb(groups, spare=3, sequences=8, tokens=32)
        with small_models.random_llm("full", platform, kv_cache_memory_gb=memory, max_num_batched_tokens=32) as llm:
            answers[platform, "preempted"] = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]
            assert llm.engine.scheduler.stats().preemptions > 2
    assert not [way for way, answer in answers.items() if answer != answers["reference", "alone"]]
