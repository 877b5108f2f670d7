"""Prefixes between engines: blocks computed by one platform serve another, and nothing else gets in."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from inferplane import LLM, SamplingParams
from inferplane.conformance.rig import Rig
from inferplane.conformance.served import Setting, serve
from inferplane.core.kv.salt import Salt
from inferplane.core.transfer import export_prefix, import_prefix
from inferplane.errors import CapacityError, ExchangeError
from inferplane.platforms import registry

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [int(token) for token in np.random.default_rng(3).integers(5, 400, 100)]


@pytest.fixture(params=[("cpu", "reference"), ("reference", "cpu")], ids=["cpu-to-reference", "reference-to-cpu"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, LLM]]:
    """Two engines of the embedded model, the first of which has seen the prompt."""
    first, second = (LLM(platform=name, kv_cache_memory_gb=0.2) for name in request.param)
    with first, second:
        first.generate(PROMPT, GREEDY)
        yield first, second


def test_an_imported_prefix_is_a_hit_and_gives_the_same_tokens(pair: tuple[LLM, LLM]) -> None:
    first, second = pair
    assert import_prefix(second.engine, PROMPT, export_prefix(first.engine, PROMPT)) == 96
    ours, theirs = (llm.generate(PROMPT, GREEDY)[0] for llm in pair)
    assert theirs.outputs[0].token_ids == ours.outputs[0].token_ids
    assert theirs.metrics.kv is not None and theirs.metrics.kv.hit_tokens == 96


def test_nothing_is_exported_of_what_was_never_computed(pair: tuple[LLM, LLM]) -> None:
    assert export_prefix(pair[1].engine, PROMPT) == []


@pytest.mark.parametrize("place", [0, 20, 300, -1], ids=["magic", "header", "body", "checksum"])
def test_a_changed_byte_is_refused(pair: tuple[LLM, LLM], place: int) -> None:
    [part] = export_prefix(pair[0].engine, PROMPT)
    broken = bytearray(part)
    broken[place] ^= 1
    with pytest.raises(ExchangeError):
        import_prefix(pair[1].engine, PROMPT, [bytes(broken)])
    assert pair[1].stats().kv.cached_blocks == pair[1].stats().kv.held_blocks == (0,)


def test_a_part_of_another_prefix_salt_or_count_is_refused(pair: tuple[LLM, LLM]) -> None:
    first, second = pair
    parts = export_prefix(first.engine, PROMPT)
    for tokens, given, salt in (([7, *PROMPT[1:]], parts, None), (PROMPT, parts, Salt(tenant="other")), (PROMPT, parts * 2, None)):
        with pytest.raises(ExchangeError):
            import_prefix(second.engine, tokens, given, salt)
    assert second.stats().kv.held_blocks == (0,)


def test_an_import_that_does_not_fit_changes_nothing(pair: tuple[LLM, LLM]) -> None:
    parts = export_prefix(pair[0].engine, PROMPT)
    with LLM(platform="cpu", max_model_len=64, max_num_seqs=1, kv_cache_memory_gb=0.0004) as small:
        with pytest.raises(CapacityError, match="do not fit"):
            import_prefix(small.engine, PROMPT, parts)
        assert small.stats().kv.held_blocks == (0,)


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_a_prefix_of_codes_travels_with_its_scales(kv_cache_dtype: str) -> None:
    """And only to an engine whose memory holds such codes."""
    dtypes = (kv_cache_dtype, kv_cache_dtype, "auto")
    coded, like, plain = (LLM(platform="reference", kv_cache_memory_gb=0.05, kv_cache_dtype=dtype) for dtype in dtypes)
    with coded, like, plain:
        ours = coded.generate(PROMPT[:40], GREEDY)[0].outputs[0]
        parts = export_prefix(coded.engine, PROMPT[:40])
        assert import_prefix(like.engine, PROMPT[:40], parts) == 32
        theirs = like.generate(PROMPT[:40], GREEDY)[0]
        assert theirs.outputs[0].token_ids == ours.token_ids
        assert theirs.metrics.kv is not None and theirs.metrics.kv.hit_tokens == 32
        with pytest.raises(ExchangeError, match="k_scale"):
            import_prefix(plain.engine, PROMPT[:40], parts)


@pytest.mark.parametrize(("theirs", "ours"), [(16, 64), (64, 16), (32, 8)])
def test_blocks_of_one_size_become_blocks_of_another(theirs: int, ours: int) -> None:
    first, second = (LLM(platform="cpu", kv_cache_memory_gb=0.2, block_size=size) for size in (theirs, ours))
    with first, second:
        expected = first.generate(PROMPT, GREEDY)[0].outputs[0]
        known = import_prefix(second.engine, PROMPT, export_prefix(first.engine, PROMPT))
        assert known == 100 // theirs * theirs // ours * ours
        answer = second.generate(PROMPT, GREEDY)[0]
        assert answer.outputs[0].token_ids == expected.token_ids
        assert answer.metrics.kv is not None and answer.metrics.kv.hit_tokens == known


def test_blocks_that_lack_what_a_window_reads_are_refused() -> None:
    """Of 48 tokens a sender with small blocks keeps the last 32; the receiver's blocks hold 32 tokens, and their end reads from 12 on."""
    rig = Rig(registry.named("reference"))
    prompt = list(range(4, 54))
    with serve(rig, Setting("sliding", caching=True, block_tokens=16), 1) as served:
        served.ask(prompt, GREEDY).end()
        parts = export_prefix(served.engine, prompt)
    with serve(rig, Setting("sliding", caching=True, block_tokens=32), 1) as served:
        with pytest.raises(ExchangeError, match="16 to 48, and blocks of 32 tokens need 12 to 32"):
            import_prefix(served.engine, prompt, parts)
        assert served.engine.stats().kv.held_blocks == (0,)
