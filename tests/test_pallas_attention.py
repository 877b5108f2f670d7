"""Attention in Pallas, under its TPU interpreter: against the reference, whenever its copies happen, and on the suite's cases."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.cases.ragged import ragged
from inferplane.conformance.rig import Rig
from inferplane.ops import DTYPES, Attention, Dim, unpack
from inferplane.ops.tolerance import within
from inferplane.platforms.contract import CONTRACT, Availability, Capabilities, Options
from inferplane.platforms.families.jax import JaxPlatform
from inferplane.platforms.tpu import QUICK_COMPILE

jax = pytest.importorskip("jax")

from inferplane.platforms.families.jax.state import Cell  # noqa: E402
from inferplane.platforms.families.pallas import attention as family  # noqa: E402
from inferplane.platforms.families.pallas.calls import Calls  # noqa: E402

MIXED = ((1, 20), (7, 0), (1, 300), (0, 0), (40, 70))


class OnlyAttention(JaxPlatform):
    """JAX on the CPU with no other kernel to hide behind."""

    name, contract, capabilities = "only-attention", CONTRACT, Capabilities(dtypes=("bfloat16", "float32"))
    quick_compile = QUICK_COMPILE

    @classmethod
    def probe(cls, options: Options) -> Availability:
        return Availability(True)

    def find_device(self, options: Options) -> Any:
        return jax.devices("cpu")[0]

    def kernels(self) -> Any:
        return family.kernels(Calls(interpret=True))


def spec_of(**given: Any) -> Attention:
    plain = dict(heads=Dim(4), kv_heads=Dim(2), key_dim=32, value_dim=32, scale=0.25, dtype="float32")
    return Attention(**{**plain, **given})


def attend(spec: Attention, rows: Sequence[tuple[int, int]], padding: tuple[int, int] = (0, 0), copies: Any = "on_wait",
           block_tokens: int = 16) -> Any:
    """(what the kernel makes of random rows among NaN, what the reference makes of them)."""
    random = np.random.default_rng(3)
    made = ragged(random, rows, kv_heads=spec.kv_heads.size, key_dim=spec.key_dim, value_dim=spec.value_dim, block_tokens=block_tokens,
                  dtype=spec.dtype, window=spec.window, padding=padding, kv_dtype=spec.kv_dtype, latent=spec.latent)
    q = random.normal(size=(made.packed.shape.tokens, spec.heads.size, spec.key_dim)).astype(DTYPES[spec.dtype])
    sinks = [random.normal(size=spec.heads.size).astype(np.float32)] if spec.sinks else None

    @partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(q: Any, arrays: Any, integers: Any, floats: Any) -> Any:
        batch, _ = unpack(made.packed.shape, integers, floats)
        return family.attention(Calls(interpret=True, copies=copies), spec, q, Cell(0, arrays), batch, sinks)

    out = run(q, dict(made.paged.poisoned(np.nan, random).arrays), made.packed.integers, made.packed.floats)
    batch, _ = unpack(*made.packed)
    return np.asarray(out), spec.reference(q, Cell(0, made.paged.arrays), batch, sinks)


SPECS = {
    "plain": spec_of(), "window": spec_of(window=17), "softcap": spec_of(softcap=2.0, sinks=True),
    "alibi": spec_of(heads=Dim(14), alibi=tuple(0.1 * n - 0.2 for n in range(14))),
    "latent": spec_of(kv_heads=Dim(1), key_dim=72, value_dim=33, latent=True), "unequal": spec_of(key_dim=96, value_dim=80),
    "codes": spec_of(kv_dtype="int8", window=40),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_mixed_rows_come_out_as_the_reference_has_them(spec: Attention) -> None:
    out, wanted = attend(spec, MIXED)
    assert within(out, wanted, depth=64, magnitude=np.ones_like(wanted)) is None


@pytest.mark.parametrize("copies", ["on_wait", "eager", "plain"])
@pytest.mark.parametrize("rows", [((1, 300), (1, 700), (0, 0), (1, 5)), ((9, 600), (2, 3))], ids=["decode", "mixed"])
def test_copies_may_happen_as_late_or_as_early_as_they_can(rows: Sequence[tuple[int, int]], copies: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "SCORE_VALUES", 1)
    out, wanted = attend(spec_of(), rows, padding=(3, 2), copies=copies)
    total = sum(queries for queries, _ in rows)
    assert within(out[:total], wanted[:total], depth=64, magnitude=np.ones_like(wanted[:total])) is None
    assert not out[total:].any()


@pytest.mark.parametrize("block_tokens", [1, 8], ids=["one", "eight"])
def test_any_size_of_block_will_do(block_tokens: int) -> None:
    out, wanted = attend(spec_of(), ((1, 20), (3, 9)), block_tokens=block_tokens)
    assert within(out, wanted, depth=64, magnitude=np.ones_like(wanted)) is None


def test_heads_are_taken_in_chunks_that_fit_and_windows_bound_a_turn() -> None:
    wide = spec_of(heads=Dim(32), kv_heads=Dim(32), key_dim=128, value_dim=128)
    assert family.plan(wide, 32, longest_query=1, columns=64, block_tokens=16) == (1, 8, 16, 16)
    assert family.plan(wide, 32, longest_query=2048, columns=128, block_tokens=16) == (256, 256, 16, 8)
    grouped = spec_of(heads=Dim(32), kv_heads=Dim(8), dtype="bfloat16", window=20)
    assert family.plan(grouped, 8, longest_query=1, columns=64, block_tokens=16) == (1, 16, 3, 8)
    assert family.plan(grouped, 8, longest_query=100, columns=64, block_tokens=16) == (64, 256, 7, 8)


def test_what_a_tpu_has_not_is_refused_in_words() -> None:
    assert family.supports(spec_of(dtype="float16")) == "dtype float16; the kernel computes in float32, bfloat16"
    assert family.supports(spec_of()) is None


CASES = (
    "attention.decode.features:dtype=float32;heads=8/2;dim=33;block=16;batch=ragged4;window=17;softcap=2;sinks=yes;scale=0.25",
    "attention.chunked:dtype=bfloat16;heads=7/1;dim=64/32;block=16;batch=pair;order=scattered;padding=yes",
    "attention.mixed.latent:dtype=bfloat16;kv=float8_e4m3fn;heads=8/1;dim=96/64;batch=verify",
)
"""Small ones of the suite's."""


@pytest.mark.parametrize("case", CASES)
def test_it_passes_the_suites_cases(case: str) -> None:
    found = find(case).run(Rig(OnlyAttention(Options())))
    assert found.verdict is Verdict.PASS, found.detail
    assert found.kernels == ("pallas.attention",)
