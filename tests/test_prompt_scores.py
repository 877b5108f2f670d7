"""Log-probabilities of a prompt's own tokens are those of the logits, in whatever steps it is computed, and disturb nobody."""
from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.core.output import RequestOutput
from inferplane.core.scheduler.scheduler import MOST_SCORED_PER_PLAN
from inferplane.core.score import logits
from inferplane.errors import RequestError

TEXT = "The code for amber is 7314. What is the code for amber? It is 7314, and nothing else. "
JUDGED = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=2)
FREE = SamplingParams(temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
INTERPRETED = {"cuda:interpreted": ("torch", "triton"), "gaudi:emulated": ("torch",)}


def assert_exact(llm: LLM, output: RequestOutput, best: int = 2) -> None:
    ids, found = list(output.prompt_token_ids), output.prompt_logprobs
    assert found is not None and len(found) == len(ids) and found[0] is None
    exact = logits(llm.loaded, ids).astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    for place, (token, entry) in enumerate(zip(ids[1:], found[1:], strict=True)):
        assert entry is not None and next(iter(entry)) == token
        assert entry[token].logprob == pytest.approx(exact[place, token], abs=2e-4)
        ranked = sorted((one for one in entry.values() if one.rank is not None), key=lambda one: one.rank or 0)
        assert [one.logprob for one in ranked] == pytest.approx(np.sort(exact[place])[::-1][:best], abs=2e-4)


@pytest.mark.parametrize("platform", ["cpu", "reference", *(pytest.param(name, marks=pytest.mark.slow) for name in INTERPRETED)])
def test_they_are_those_of_the_logits(platform: str) -> None:
    for needed in INTERPRETED.get(platform, ()):
        pytest.importorskip(needed)
    with LLM("tiny", platform=platform, dtype="float32", max_model_len=64, max_num_seqs=2) as llm:
        [output] = llm.generate(TEXT, JUDGED)
        assert_exact(llm, output)
        [plain] = llm.generate(TEXT, replace(JUDGED, prompt_logprobs=None))
        assert plain.prompt_logprobs is None and plain.outputs[0].token_ids == output.outputs[0].token_ids


@pytest.mark.parametrize("tokens", [16, 64, 2048], ids=lambda tokens: f"{tokens}-tokens-a-step")
def test_prompts_longer_than_a_step_are_judged_whole_and_neighbours_draw_as_ever(tokens: int) -> None:
    prompts = [TEXT * count for count in (20, 1, 7, 12)]
    with LLM(platform="cpu", dtype="float32", max_num_seqs=4, max_num_batched_tokens=tokens) as llm:
        params = [JUDGED, FREE, replace(JUDGED, n=2, logprobs=1, prompt_logprobs=0), JUDGED]
        alone = llm.generate(prompts[1], FREE)[0].outputs[0].token_ids
        for _ in range(2):
            outputs = llm.generate(prompts, params)
            assert outputs[1].outputs[0].token_ids == alone and outputs[1].prompt_logprobs is None
            for place, best in ((0, 2), (2, 0), (3, 2)):
                assert_exact(llm, outputs[place], best)
        assert sum(len(output.prompt_token_ids) for output in outputs) > 2 * MOST_SCORED_PER_PLAN
        assert set(llm.stats().kv.held_blocks) == {0}


def test_one_that_lost_its_blocks_is_judged_all_the_same(small_models: ModuleType) -> None:
    with LLM(platform="cpu", dtype="float32") as plain:
        memory = small_models.pool_gb(plain.loaded.model.states, spare=0, sequences=8, tokens=64, length=200)
    with LLM(platform="cpu", dtype="float32", max_model_len=200, max_num_seqs=8, max_num_batched_tokens=64,
             kv_cache_memory_gb=memory) as llm:
        outputs = llm.generate([f"{place}: {TEXT}" for place in range(6)], replace(JUDGED, max_tokens=100, ignore_eos=True))
        assert llm.engine.scheduler.stats().preemptions > 0
        for output in outputs:
            assert_exact(llm, output)


@pytest.mark.parametrize("asked", [-1, 1.5, True, "2"], ids=["negative", "fraction", "bool", "text"])
def test_a_number_that_cannot_be_meant_is_refused(asked: object) -> None:
    with pytest.raises(RequestError, match="prompt_logprobs must be an integer of at least 0"):
        SamplingParams(prompt_logprobs=asked)  # type: ignore[arg-type]
