"""Our kernels compiled for chips that are not there: each one fits, nothing spills, and what does not fit is told."""
from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from inferplane.ops import (  # noqa: E402
    AddRmsNorm,
    Attention,
    BatchShape,
    Dim,
    GatedActivation,
    LayerNorm,
    QkvRopeWrite,
    RmsNorm,
    Rope,
    Sample,
    StateGroup,
    WriteKV,
    empty,
    unpack,
)
from inferplane.platforms.families.torch.arrays import tensor  # noqa: E402
from inferplane.platforms.families.triton import attention, cells, rows, sample  # noqa: E402
from inferplane.platforms.families.triton.compiled import Compiler, _over  # noqa: E402
from inferplane.platforms.families.triton.launches import Launch  # noqa: E402
from inferplane.platforms.families.triton.state import TritonState  # noqa: E402
from inferplane.platforms.families.triton.target import TARGETS  # noqa: E402


@pytest.fixture
def compiler(request: Any) -> Iterator[Compiler]:
    """For the architecture that the test names; tensors have no memory meanwhile."""
    with torch.device("meta"):
        yield Compiler(TARGETS[request.param])


def batch(tokens: int, rows: int = 0, longest: int = 1, **more: Any) -> tuple[Any, Any]:
    packed, *_ = empty(BatchShape(tokens, rows or tokens, rows or tokens, (4,), longest, **more))
    return unpack(packed.shape, tensor(packed.integers).to("meta"), tensor(packed.floats).to("meta"))


def norms(compiler: Compiler) -> None:
    device, x, weight = compiler.device, torch.zeros(8, 4096, dtype=torch.bfloat16), (torch.ones(4096), torch.ones(4096))
    norm = RmsNorm(size=4096, epsilon=1e-6, dtype="bfloat16")
    rows.rms_norm(device, norm, x, weight)
    rows.rms_norm(device, RmsNorm(size=128, epsilon=1e-6, dtype="bfloat16"), torch.zeros(8, 32, 128, dtype=torch.bfloat16), weight)
    rows.add_rms_norm(device, AddRmsNorm(norm=norm), x, x, weight)
    rows.layer_norm(device, LayerNorm(size=4096, epsilon=1e-6, dtype="bfloat16"), x, weight)


def activations(compiler: Compiler) -> None:
    x = torch.zeros(8, 8192, dtype=torch.bfloat16)
    for kind in ("silu", "gelu", "gelu_tanh", "relu", "tanh"):
        rows.gated_activation(compiler.device, GatedActivation(kind=kind, dtype="bfloat16"), x, x)


def cells_of(compiler: Compiler) -> None:
    step, _ = batch(16)
    turned = [Rope(heads=Dim(n), head_dim=128, frequencies=tuple(10.0**-j for j in range(32)), dtype="bfloat16") for n in (32, 8)]
    q, k = (torch.zeros(16, n, 128, dtype=torch.bfloat16) for n in (32, 8))
    cells.rope(compiler.device, turned[0], q, step)
    for kv_dtype in (None, "int8", "float8_e4m3fn"):
        write = WriteKV(kv_heads=Dim(8), key_dim=128, value_dim=128, dtype="bfloat16", kv_dtype=kv_dtype)
        state = TritonState(compiler.device, [StateGroup("full", (0,), write.arrays)], [8], 4)
        cells.write_kv(compiler.device, write, k, k, state[0], step)
        cells.qkv_rope_write(compiler.device, QkvRopeWrite(query=turned[0], key=turned[1], write=write), q, k, k, state[0], step)
    state.copy(0, [1], [2])


def sampling(compiler: Compiler) -> None:
    step, how = batch(16, edits=32, logprobs=4)
    state = TritonState(compiler.device, [], [], 4)
    sample.sample(compiler.device, Sample(vocab=Dim(128256)), torch.zeros(16, 128256), how, step, state)


@pytest.mark.slow
@pytest.mark.parametrize("work", [norms, activations, cells_of, sampling], ids=["norms", "activations", "cells", "sampling"])
@pytest.mark.parametrize("compiler", TARGETS, indirect=True)
def test_every_row_kernel_compiles_and_fits(compiler: Compiler, work: Any) -> None:
    work(compiler)
    assert compiler.made
    assert [one for one in compiler.made if not one.fits] == []
    assert all(0 < one.registers <= compiler.target.registers for one in compiler.made)


DECODE, SHORT, CHUNK = (8, 8, 1), (16, 8, 4), (512, 2, 256)
"""(tokens, rows, longest query)."""
CROWDED = (
    ("sm_80", (576, 512), "float8_e4m3fn", DECODE),
    ("sm_80", (64, 64), "int8", CHUNK),
    ("sm_90", (576, 512), "float8_e4m3fn", DECODE),
    ("sm_90", (80, 80), "int8", DECODE),
    ("sm_90", (128, 128), "int8", CHUNK),
    ("sm_100", (576, 512), None, DECODE),
    ("sm_100", (128, 128), None, DECODE),
    ("sm_100", (576, 512), "int8", SHORT),
    ("gfx942", (64, 64), None, CHUNK),
    ("gfx942", (80, 80), "int8", SHORT),
    ("gfx950", (64, 64), "float8_e4m3fn", DECODE),
    ("gfx950", (128, 128), "int8", SHORT),
)
"""Calls of attention whose tiles fill the registers: with wider ones, or with dearer masks, they spilled."""


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "dims", "kv_dtype", "form"), CROWDED, indirect=["compiler"])
def test_attention_with_a_window_a_softcap_and_sinks_does_not_spill(
    compiler: Compiler, dims: tuple[int, int], kv_dtype: str | None, form: tuple[int, int, int],
) -> None:
    (key_dim, value_dim), latent = dims, dims[0] != dims[1]
    heads, kv_heads = (Dim(16), Dim(1)) if latent else (Dim(8), Dim(2))
    spec = Attention(heads=heads, kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim, scale=0.1, dtype="bfloat16", kv_dtype=kv_dtype,
                     latent=latent, window=15, softcap=30.0, sinks=True)
    write = WriteKV(kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim, dtype="bfloat16", kv_dtype=kv_dtype, latent=latent)
    state = TritonState(compiler.device, [StateGroup("full", (0,), write.arrays)], [8], 4)
    q = torch.zeros(form[0], heads.size, key_dim, dtype=torch.bfloat16)
    attention.attention(compiler.device, spec, q, state[0], batch(*form)[0], (torch.zeros(heads.size),))
    assert compiler.made[0].kernel == "attention_kernel"
    assert [one for one in compiler.made if not one.fits] == []


@triton.jit
def _crowded(out, x, BLOCK: tl.constexpr):
    """A matrix held by one warp, used twice with a sum of all of it in between."""
    lane = tl.arange(0, BLOCK)
    values = tl.load(x + lane[:, None] * BLOCK + lane[None, :])
    total = tl.sum(tl.sum(values, axis=1), axis=0)
    tl.store(out + lane[:, None] * BLOCK + lane[None, :], values / total)


@pytest.mark.parametrize(("compiler", "block"), [("sm_90", 128), ("gfx942", 256)], indirect=["compiler"])
def test_a_kernel_that_spills_is_told(compiler: Compiler, block: int) -> None:
    x = torch.zeros(block, block)
    compiler.device.launch(_crowded, (1,), x, x, BLOCK=block, config=Launch({}, {"num_warps": 1}))
    [made] = compiler.made
    assert made.spilled_bytes > 0
    assert not made.fits


@triton.jit
def _wrong(out):
    tl.store(out, tl.arange(0, 3))


@pytest.mark.parametrize("compiler", ["sm_90"], indirect=True)
def test_a_kernel_that_does_not_compile_is_told_with_the_compilers_words(compiler: Compiler) -> None:
    compiler.device.launch(_wrong, (1,), torch.zeros(4), config=Launch({}, {}))
    [made] = compiler.made
    assert "power of 2" in made.reason
    assert not made.fits


@pytest.mark.parametrize("compiler", ["gfx942"], indirect=True)
def test_the_same_launch_is_compiled_once(compiler: Compiler) -> None:
    for _ in range(2):
        rows.rms_norm(compiler.device, RmsNorm(size=64, epsilon=1e-6, dtype="float32"), torch.zeros(4, 64), (torch.ones(64),))
    assert len(compiler.made) == 1


@triton.jit(do_not_specialize=["count"])
def _varying(out, count):
    tl.store(out, count.to(tl.float32))


@pytest.mark.parametrize("compiler", ["sm_90"], indirect=True)
def test_a_number_that_a_kernel_takes_as_it_comes_is_no_constant_though_it_is_1(compiler: Compiler) -> None:
    for count in (1, 16, 17):
        compiler.device.launch(_varying, (1,), torch.zeros(4), count, config=Launch({}, {}))
    [made] = compiler.made
    assert made.fits and made.arguments.endswith("count:i32")


def test_a_tile_over_a_budget_is_told_in_words() -> None:
    wide = SimpleNamespace(shared=200_000, tmem_size=1024)
    assert _over(wide, 0, TARGETS["sm_80"]) == ("200,000 bytes of shared memory, and a program has 166,912; "
                                                "1,024 columns of tensor memory, and a program has 512")
    assert _over(SimpleNamespace(shared=1024), 0, TARGETS["gfx942"]) == ""
