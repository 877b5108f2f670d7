"""Attention in Triton, under its interpreter: against the reference, in shares of the keys, and with bugs planted in its source."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.cases.ragged import ragged
from inferplane.conformance.mutants.source import planted
from inferplane.conformance.mutants.triton_attention import SOURCE_BUGS
from inferplane.conformance.rig import Rig
from inferplane.ops import Attention, BatchShape, Dim, unpack
from inferplane.ops.tolerance import within
from inferplane.platforms.contract import Options

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from inferplane.platforms.cuda import Cuda  # noqa: E402
from inferplane.platforms.families.torch.arrays import host, tensor  # noqa: E402
from inferplane.platforms.families.torch.state import Cell  # noqa: E402
from inferplane.platforms.families.triton import attention as family  # noqa: E402
from inferplane.platforms.families.triton import attention_kernel as device_code  # noqa: E402

MIXED = ((1, 20), (7, 0), (1, 300), (0, 0), (40, 70))


class OnlyAttention(Cuda):
    """`cuda:interpreted` with no other kernel to hide behind."""

    def __init__(self) -> None:
        super().__init__(Options("interpreted"))

    def kernels(self) -> Any:
        return family.kernels(self.runs_on)


def spec_of(**given: Any) -> Attention:
    plain = dict(heads=Dim(4), kv_heads=Dim(2), key_dim=32, value_dim=32, scale=0.25, dtype="float32")
    return Attention(**{**plain, **given})


def attend(spec: Attention, rows: Sequence[tuple[int, int]], padding: tuple[int, int] = (0, 0), processors: int = 132) -> Any:
    """(what the kernel makes of random rows, what the reference makes of them)."""
    random = np.random.default_rng(3)
    made = ragged(random, rows, kv_heads=spec.kv_heads.size, key_dim=spec.key_dim, value_dim=spec.value_dim, block_tokens=16,
                  dtype=spec.dtype, window=spec.window, padding=padding, kv_dtype=spec.kv_dtype, latent=spec.latent)
    paged = made.paged.poisoned(np.nan, random)
    batch, _ = unpack(*made.packed)
    q = random.normal(size=(made.packed.shape.tokens, spec.heads.size, spec.key_dim)).astype(np.float32)
    sinks = [random.normal(size=spec.heads.size).astype(np.float32)] if spec.sinks else None
    device = OnlyAttention().runs_on
    device = replace(device, target=replace(device.target, processors=processors))
    cell = Cell(0, {name: tensor(array) for name, array in paged.arrays.items()})
    placed = unpack(made.packed.shape, torch.from_numpy(made.packed.integers), torch.from_numpy(made.packed.floats))[0]
    out = family.attention(device, spec, torch.from_numpy(q), cell, placed, None if sinks is None else [torch.from_numpy(sinks[0])])
    host_cell = Cell(0, made.paged.arrays)
    return host(out), spec.reference(q, host_cell, batch, sinks)


SPECS = {
    "plain": spec_of(), "window": spec_of(window=17), "softcap": spec_of(softcap=2.0), "sinks": spec_of(sinks=True),
    "alibi": spec_of(alibi=(0.5, 0.1, -0.01, 1.0), sinks=True), "odd group": spec_of(heads=Dim(14)),
    "latent": spec_of(kv_heads=Dim(1), key_dim=72, value_dim=33, latent=True), "unequal": spec_of(key_dim=96, value_dim=80),
    "many heads": spec_of(heads=Dim(40), kv_heads=Dim(1), sinks=True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("processors", [1, 4096], ids=["whole", "shared"])
def test_mixed_rows_come_out_as_the_reference_has_them_however_their_keys_are_shared(spec: Attention, processors: int) -> None:
    out, wanted = attend(spec, MIXED, processors=processors)
    assert within(out, wanted, depth=64, magnitude=np.ones_like(wanted)) is None


@pytest.mark.parametrize("rows", [((1, 300), (1, 5), (1, 129)), ((300, 0),)], ids=["decode", "prefill"])
def test_a_row_whose_keys_are_shared_out_repeats_itself_to_the_bit(rows: Sequence[tuple[int, int]]) -> None:
    first, wanted = attend(spec_of(sinks=True), rows, processors=4096)
    again, _ = attend(spec_of(sinks=True), rows, processors=4096)
    np.testing.assert_array_equal(first, again)
    assert within(first, wanted, depth=64, magnitude=np.ones_like(wanted)) is None


@pytest.mark.parametrize("rows", [((1, 300), (1, 5)), ((9, 3), (1, 40))], ids=["decode", "mixed"])
@pytest.mark.parametrize("processors", [1, 4096], ids=["whole", "shared"])
def test_tokens_and_rows_of_padding_give_zeros(rows: Sequence[tuple[int, int]], processors: int) -> None:
    out, _ = attend(spec_of(), rows, padding=(3, 2), processors=processors)
    assert not out[-3:].any()
    assert np.isfinite(out).all() and out[:-3].any(axis=(1, 2)).all()


def test_keys_are_shared_out_where_rows_are_few_and_contexts_are_long() -> None:
    device = OnlyAttention().runs_on

    def shares(rows: int, keys: int, window: int | None = None) -> int:
        shape = BatchShape(tokens=rows, rows=rows, samples=rows, blocks=(keys // 16,), longest_query=1)
        spec = spec_of(heads=Dim(32), kv_heads=Dim(8), key_dim=128, value_dim=128, window=window)
        return family.plan(device, spec, shape, keys, 16).shares

    assert shares(1, 64) == 1
    assert shares(1, 8192) == 64
    assert shares(8, 8192) == 8
    assert shares(64, 8192) == 1
    assert shares(1, 8192, window=128) == 1


def test_what_tiles_cannot_hold_is_refused_in_words() -> None:
    assert family.supports(spec_of(key_dim=1024, value_dim=64)) == "head dims 1024 and 64; tiles hold at most 576"
    assert "dtype float64" in str(family.supports(spec_of(dtype="float64")))
    assert "scale -1" in str(family.supports(spec_of(scale=-1.0)))


PARTS = {576: (512, 64), 128: (128, 0), 96: (64, 32), 112: (128, 0), 33: (32, 16), 80: (64, 16)}


@pytest.mark.parametrize(("dim", "parts"), PARTS.items(), ids=map(str, PARTS))
def test_a_dim_is_cut_in_powers_of_two_without_much_waste(dim: int, parts: tuple[int, int]) -> None:
    assert family.cut(dim) == parts


CASES = (
    "attention.decode.features:dtype=float32;heads=8/2;dim=33;block=16;batch=ragged4;window=17;softcap=2;sinks=yes;scale=0.25",
    "attention.prefill.features:dtype=float32;heads=8/2;dim=80;block=8;batch=long;window=15;softcap=30;sinks=no;scale=0.25",
    "attention.chunked:dtype=bfloat16;heads=7/1;dim=64/32;block=16;batch=pair;order=scattered;padding=yes",
    "attention.prefill:dtype=float16;heads=4/4;dim=96;block=32;batch=ragged3;order=scattered;padding=no",
    "attention.decode:dtype=float32;heads=8/2;dim=64;block=16;batch=long;order=scattered;padding=yes",
    "attention.decode.kv:dtype=bfloat16;kv=float8_e4m3fn;heads=8/2;dim=64;block=16;batch=ragged4;window=none",
    "attention.mixed.kv:dtype=float16;kv=int8;heads=8/2;dim=33;block=16;batch=verify;window=16",
    "attention.mixed.latent:dtype=bfloat16;kv=float8_e4m3fn;heads=8/1;dim=96/64;batch=verify",
    "attention.decode.alibi:dtype=float32;heads=8/2;dim=64;batch=ragged4;window=16;softcap=2;sinks=yes",
)
"""Small ones of the suite's, of every form."""


@pytest.mark.parametrize("case", CASES)
def test_it_passes_the_suites_cases(case: str) -> None:
    found = find(case).run(Rig(OnlyAttention()))
    assert found.verdict is Verdict.PASS, found.detail
    assert found.kernels == ("triton.attention",)


def test_a_planted_bug_is_gone_afterwards_and_its_text_must_be_there() -> None:
    before = vars(family)["attention_kernel"]
    with planted(SOURCE_BUGS[0]):
        assert vars(family)["attention_kernel"] is not before
    assert vars(family)["attention_kernel"] is before is device_code.attention_kernel
    with pytest.raises(ValueError, match="stands 0 times"):
        replace(SOURCE_BUGS[0], old="nowhere to be found").text()
