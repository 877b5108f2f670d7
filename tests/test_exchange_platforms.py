"""Every ordered pair of platforms: one computes a prompt, the other goes on from its blocks, and tokens are the reference's."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations

import pytest
from inferplane.conformance.rig import Rig
from inferplane.conformance.served import Served, Setting, serve
from inferplane.core.kv.salt import Salt
from inferplane.core.request import SamplingParams
from inferplane.core.transfer import export_prefix, import_prefix
from inferplane.errors import ExchangeError
from inferplane.platforms import registry

PLATFORMS = ("reference", "cpu", "cuda:interpreted", "rocm:interpreted", "tpu:interpreted", "xpu:emulated", "gaudi:emulated")
PROMPT = [4 + place * 37 % 90 for place in range(70)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SEED = 5


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Served]]:
    """One of the same small random model on each platform, in float32, in the platform's own size of blocks up to 64 tokens."""
    for module in ("torch", "triton", "jax"):
        pytest.importorskip(module)
    with ExitStack() as stack:
        yield {name: stack.enter_context(_serve(name)) for name in PLATFORMS}


def _serve(name: str):  # type: ignore[no-untyped-def]
    found = registry.find(name)
    rig = Rig(found.open(), reopen=found.open)
    size = next(size for size in rig.platform.capabilities.block_tokens if size <= 64)
    return serve(rig, Setting("full-and-sliding", caching=True, block_tokens=size), SEED)


@pytest.fixture(scope="module")
def exported(engines: dict[str, Served]) -> dict[str, tuple[tuple[int, ...], list[bytes]]]:
    """What each platform answers, and its blocks of the prompt's first 64 tokens, each under a salt of its own."""
    made = {}
    for name, served in engines.items():
        answer = served.ask(PROMPT, GREEDY, salt=Salt(tenant=name)).end()
        made[name] = answer.outputs[0].token_ids, export_prefix(served.engine, PROMPT[:64], Salt(tenant=name))
    return made


@pytest.mark.parametrize(("first", "second"), list(permutations(PLATFORMS, 2)), ids="-to-".join)
def test_one_platform_goes_on_where_another_computed(
    engines: dict[str, Served], exported: dict[str, tuple[tuple[int, ...], list[bytes]]], first: str, second: str,
) -> None:
    (tokens, parts), served, salt = exported[first], engines[second], Salt(tenant=first)
    assert tokens == exported["reference"][0]
    broken = bytearray(parts[-1])
    broken[len(broken) // 2] ^= 1
    with pytest.raises(ExchangeError):
        import_prefix(served.engine, PROMPT, [*parts[:-1], bytes(broken)], salt)
    with pytest.raises(ExchangeError):
        import_prefix(served.engine, PROMPT, parts, Salt(tenant="another"))
    assert import_prefix(served.engine, PROMPT, parts, salt) == 64
    answer = served.ask(PROMPT, GREEDY, salt=salt).end()
    assert answer.outputs[0].token_ids == tokens
    assert answer.metrics.kv is not None and answer.metrics.kv.hit_tokens == 64
