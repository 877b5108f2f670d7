"""One model, one answer: the embedded model in float32 gives the reference's greedy tokens on every platform, and on two devices."""
from __future__ import annotations

from typing import Any

import pytest
from inferplane import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Repeat after me: blue, green,"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
EVERYWHERE = {
    "cpu": ("cpu", {}), "cuda": ("cuda:interpreted", {}), "rocm": ("rocm:interpreted", {}), "tpu": ("tpu:interpreted", {}),
    "xpu": ("xpu:emulated", {}), "gaudi": ("gaudi:emulated", {}), "two devices": ("torch-cpu", {"tensor_parallel": 2, "threads": None}),
}
NEEDS = {"cuda": ("torch", "triton"), "rocm": ("torch", "triton"), "tpu": ("jax",), "xpu": ("torch",), "gaudi": ("torch",)}
"""What is not installed everywhere."""


def answers(platform: str, **settings: Any) -> list[tuple[int, ...]]:
    with LLM("tiny", platform=platform, dtype="float32", max_model_len=64, max_num_seqs=2, **settings) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture(scope="module")
def reference() -> list[tuple[int, ...]]:
    return answers("reference")


@pytest.mark.slow
@pytest.mark.parametrize("where", EVERYWHERE)
def test_greedy_tokens_are_those_of_the_reference(where: str, reference: list[tuple[int, ...]], request: pytest.FixtureRequest) -> None:
    for needed in NEEDS.get(where, ()):
        pytest.importorskip(needed)
    if where == "two devices":
        request.getfixturevalue("devices")
    platform, settings = EVERYWHERE[where]
    assert answers(platform, **settings) == reference
