"""The cpu's experts: a token gets the same bits whatever stands beside it, and ids whatever rounding could do to ties."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from inferplane.ops import DTYPES, Dim, Kernel, Moe, Router, Spec
from inferplane.platforms import registry
from inferplane.platforms.contract import Platform
from inferplane.platforms.cpu.library import missing_reason

pytestmark = pytest.mark.skipif(missing_reason() is not None, reason="the C++ kernels were not built")


@pytest.fixture(scope="module")
def cpu() -> Iterator[Platform]:
    made = registry.named("cpu", threads=2)
    yield made
    made.close()


def kernel_for(platform: Platform, spec: Spec) -> Kernel:
    return next(kernel for kernel in platform.kernels() if kernel.op == spec.op and kernel.supports(spec) is None)


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "biased-and-limited": ({"bias": True, "groups": 4, "top_groups": 2, "scale": 2.5}, {"bias": True, "limit": 7.0, "alpha": 1.702}),
}
"""Fields of the router and of the experts."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_token_keeps_its_bits_among_others(cpu: Platform, dtype: str, form: str) -> None:
    rng = np.random.default_rng(0)
    router = Router(experts=Dim(12), top_k=3, **FORMS[form][0])
    moe = Moe(experts=Dim(12), embed=72, mlp=Dim(40), top_k=3, activation="silu", dtype=dtype, **FORMS[form][1])
    route, run = kernel_for(cpu, router).run, kernel_for(cpu, moe)
    assert run.name == "native.moe" and run.batch_invariant and run.prepare is not None
    weight = run.prepare(moe, [rng.normal(size=part.shape).astype(DTYPES[dtype]) for part in moe.weight("g", "u", "d").parts])
    bias = [(rng.normal(size=12).astype(np.float32),)] if router.bias else []

    def result(rows: slice) -> tuple[Any, ...]:
        chosen = route(router, logits[rows], *bias)
        return (*chosen, run.run(moe, x[rows], *chosen, weight, None))

    logits, x = rng.normal(size=(67, 12)).astype(np.float32), rng.normal(size=(67, 72)).astype(DTYPES[dtype])
    together = result(slice(None))
    for rows in (slice(0, 1), slice(5, 12), slice(30, 67)):
        for alone, among in zip(result(rows), together, strict=True):
            assert alone.tobytes() == among[rows].tobytes()


def test_ties_go_to_the_lowest_expert_among_many(cpu: Platform) -> None:
    spec = Router(experts=Dim(128), top_k=8, renormalize=False)
    logits = np.random.default_rng(1).integers(-2, 3, (9, 128)).astype(np.float32)
    experts, _ = kernel_for(cpu, spec).run(spec, logits)
    assert experts.tolist() == [sorted(range(128), key=lambda e, row=row: (-row[e], e))[:8] for row in logits]
