"""What can be asked for, and what is refused with a reason."""
from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from inferplane.core.kv.salt import Salt
from inferplane.core.request import Key, SamplingParams, expand
from inferplane.errors import RequestError

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
COUNTS = ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs")


def test_the_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert (params.n, params.max_tokens, params.temperature) == (1, 16, 1.0)
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
    assert (params.greedy, params.needs_host) == (False, False)


def test_lists_become_tuples_so_that_parameters_can_be_hashed() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2], logit_bias={5: 1, 3: -2.5})
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("a", "b"), (1, 2), ((3, -2.5), (5, 1.0)))
    assert hash(params) == hash(SamplingParams(stop=("a", "b"), stop_token_ids=(1, 2), logit_bias={3: -2.5, 5: 1.0}))
    assert SamplingParams(stop="a").stop == ("a",)


def test_parameters_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]


@pytest.mark.parametrize("top_k", [-1, 0])
def test_top_k_of_minus_one_or_zero_is_off(top_k: int) -> None:
    assert SamplingParams(top_k=top_k).top_k == 0


def test_numpy_numbers_are_numbers() -> None:
    params = SamplingParams(n=np.int64(2), temperature=np.float32(0.5), top_k=np.int32(3))
    assert [type(value) for value in (params.n, params.temperature, params.top_k)] == [int, float, int]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", True, None, [1.0], 10**400], ids=repr)
def test_a_number_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name} must be .*; found"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.0, "1", True, math.nan, [1]], ids=repr)
def test_a_count_that_is_no_integer_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name} must be an integer"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("n", 0), ("max_tokens", 0), ("min_tokens", -1), ("min_tokens", 17), ("temperature", -0.1), ("top_k", -2), ("top_p", 0.0),
    ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0), ("presence_penalty", 2.1), ("seed", 2**64),
    ("frequency_penalty", -2.1), ("logprobs", -2), ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", 5), ("stop", b"a"),
    ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", "12"), ("stop_token_ids", 3),
    ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}), ("logit_bias", {-1: 0.0}), ("logit_bias", {"1": 0.0}),
    ("logit_bias", [1, 2]), ("ignore_eos", 1), ("skip_special_tokens", "no"), ("include_stop_str_in_output", None),
], ids=lambda value: repr(value))
def test_a_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name}.* must be .*; found"):
        SamplingParams(**{name: value})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="'temprature' is unknown. Did you mean 'temperature'"):
        SamplingParams.from_kwargs(temprature=0.5)


def test_penalties_need_the_host() -> None:
    assert SamplingParams(presence_penalty=0.1).needs_host
    assert not SamplingParams(min_tokens=3, stop="x").needs_host


def test_n_samples_are_n_sequences_of_one_prompt() -> None:
    requests = expand("a", [1, 2], SamplingParams(n=3, stop_token_ids=[9]), eos_ids=[2], max_model_len=100, salt=Salt("x"))
    assert [request.key for request in requests] == [Key("a", 0), Key("a", 1), Key("a", 2)]
    assert all(request.prompt is requests[0].prompt for request in requests)
    assert (requests[0].stop_ids, requests[0].max_tokens, requests[0].salt) == ({2, 9}, 16, Salt("x"))


def test_no_limit_means_up_to_the_context_and_no_eos_means_only_the_stop_tokens() -> None:
    params = SamplingParams(max_tokens=None, ignore_eos=True, stop_token_ids=[9])
    request = expand("a", [1, 2], params, eos_ids=[2], max_model_len=100)[0]
    assert (request.max_tokens, request.stop_ids) == (98, {9})


def test_a_prompt_is_kept_as_it_was_when_its_list_changes() -> None:
    mine = np.array([1, 2, 3])
    request = expand("a", mine, SamplingParams(), eos_ids=[], max_model_len=100)[0]
    mine[0] = 9
    assert request.prompt.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        request.prompt[0] = 9


@pytest.mark.parametrize("prompt", [[], [1.5], ["a"], "text", [[1]], [True], [-1], [2**31], [1, [2]], None], ids=repr)
def test_a_prompt_that_is_none_is_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        expand("a", prompt, SamplingParams(), eos_ids=[], max_model_len=100)  # type: ignore[arg-type]
