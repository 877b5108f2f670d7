"""The Triton row kernels under the interpreter, where the conformance suite looks less closely: bits, angles, ties, aliases."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from inferplane.ops import BatchShape, Dim, GatedActivation, RmsNorm, Sample, StateArray, StateGroup, empty, unpack  # noqa: E402
from inferplane.ops.threefry import uniforms as uniforms_of  # noqa: E402
from inferplane.platforms.families.torch.arrays import tensor  # noqa: E402
from inferplane.platforms.families.triton import interpreted, rows  # noqa: E402
from inferplane.platforms.families.triton.cells_kernel import cos_sin  # noqa: E402
from inferplane.platforms.families.triton.codes_kernel import decode_e4m3fn, encode_e4m3fn, nearest  # noqa: E402
from inferplane.platforms.families.triton.device import Device  # noqa: E402
from inferplane.platforms.families.triton.launches import Launch  # noqa: E402
from inferplane.platforms.families.triton.sample import sample  # noqa: E402
from inferplane.platforms.families.triton.state import TritonState  # noqa: E402
from inferplane.platforms.families.triton.target import interpreted as interpreted_target  # noqa: E402
from inferplane.platforms.families.triton.threefry_kernel import uniforms  # noqa: E402

DEVICE = Device(torch.device("cpu"), interpreted_target("nvidia"), interpreted.start)


@triton.jit
def _decode(out, x, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, decode_e4m3fn(tl.load(x + lane, mask=lane < n, other=0)), mask=lane < n)


@triton.jit
def _encode(out, x, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, encode_e4m3fn(tl.load(x + lane, mask=lane < n, other=0.0)), mask=lane < n)


@triton.jit
def _nearest(out, x, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, nearest(tl.load(x + lane, mask=lane < n, other=0.0)), mask=lane < n)


@triton.jit
def _cos_sin(out, x, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    cos, sin = cos_sin(tl.load(x + lane, mask=lane < n, other=0.0))
    tl.store(out + lane, cos, mask=lane < n)
    tl.store(out + n + lane, sin, mask=lane < n)


@triton.jit
def _uniforms(out, seeds, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    made = uniforms(tl.load(seeds), tl.load(seeds + 1), tl.load(seeds + 2), tl.load(seeds + 3), 0, BLOCK)
    tl.store(out + lane, made, mask=lane < n)


def run(kernel: Any, out: Any, x: np.ndarray[Any, Any], n: int, block: int) -> np.ndarray[Any, Any]:
    interpreted.start(kernel, (1,), (out, torch.from_numpy(x), n), {"BLOCK": block}, Launch({}, {}))
    return out.numpy()


class TestFloat8:
    def test_every_code_is_decoded_to_the_bit(self) -> None:
        codes = np.arange(256, dtype=np.uint8)
        made = run(_decode, torch.empty(256), codes, 256, 256)
        right = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        assert np.array_equal(made, right, equal_nan=True)
        assert np.array_equal(np.signbit(made[:127]), np.signbit(right[:127]))

    def test_values_between_codes_and_their_neighbours_are_encoded_to_the_nearest(self) -> None:
        codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        finite = np.unique(codes[np.isfinite(codes)])
        middles = (finite[1:] + finite[:-1]) / 2
        around = [np.nextafter(middles, np.float32(side)) for side in (-1e9, 1e9)]
        x = np.concatenate([finite, middles, *around, np.random.default_rng(0).normal(0, 0.01, 1000)]).astype(np.float32)
        made = run(_encode, torch.empty(len(x), dtype=torch.uint8), x, len(x), 4096)
        assert np.array_equal(made, x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))

    def test_what_is_too_large_becomes_the_largest_and_nan_stays(self) -> None:
        x = np.array([1e9, -1e9, np.inf, np.nan], np.float32)
        made = run(_encode, torch.empty(4, dtype=torch.uint8), x, 4, 4)
        assert made[:3].tolist() == [0x7E, 0xFE, 0x7E]
        assert made[3] & 0x7F == 0x7F


def test_halves_are_rounded_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 0.49999997], np.float32)
    assert run(_nearest, torch.empty(7), x, 7, 8).tolist() == np.rint(x).tolist()


def test_cosines_and_sines_hold_at_a_million_radians() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(-10, 10, 2000), random.uniform(0, 1.1e6, 2000), [0.0, np.pi / 4, np.pi / 2]]).astype(np.float32)
    cos, sin = run(_cos_sin, torch.empty(2 * len(x)), x, len(x), 4096).reshape(2, -1)
    assert np.abs(cos - np.cos(x.astype(np.float64))).max() < 1.2e-7
    assert np.abs(sin - np.sin(x.astype(np.float64))).max() < 1.2e-7


def test_uniforms_are_those_of_every_platform_to_the_bit() -> None:
    words = np.array([-5, 77, 3, 123456], np.int32)
    made = run(_uniforms, torch.empty(1001), words, 1001, 1024)
    assert np.array_equal(made, uniforms_of(*(words[place : place + 1] for place in range(4)), vocab=1001)[0])


class TestRowsOfAnInput:
    def test_heads_inside_a_fused_projection_are_read_where_they_lie(self) -> None:
        fused = torch.randn(5, 7 * 8)
        heads = fused[:, 8:40].unflatten(1, (4, 8))
        found = rows.rows_of(heads, 8)
        assert found.array.data_ptr() == heads.data_ptr()
        assert (found.inner, found.outer_stride, found.inner_stride) == (4, 56, 8)

    def test_a_norm_over_them_is_that_of_a_copy(self) -> None:
        heads = torch.randn(5, 56)[:, 8:40].unflatten(1, (4, 8))
        spec = RmsNorm(size=8, epsilon=1e-6, dtype="float32")
        normed, copied = (rows.rms_norm(DEVICE, spec, one, (torch.ones(8),)) for one in (heads, heads.clone()))
        assert torch.equal(normed, copied)

    def test_a_gate_and_an_up_with_different_strides_meet_element_by_element(self) -> None:
        fused, up = torch.randn(3, 20), torch.randn(3, 10)
        made = rows.gated_activation(DEVICE, GatedActivation(kind="relu", dtype="float32"), fused[:, :10], up)
        assert torch.equal(made, fused[:, :10].relu() * up)


class State:
    def __init__(self, slots: int, zeros: Callable[..., Any]) -> None:
        self.last_token = zeros(slots)


def drawn(vocab: int, seed: int, *, ties: bool, edits: bool) -> tuple[Any, Any, Any, Any]:
    """(ours, the reference's, our state's last tokens, the reference's) of five samples that are all filtered differently."""
    random, samples, count = np.random.default_rng(seed), 5, min(3, vocab)
    packed, batch, sampling = empty(BatchShape(samples, samples, samples, (1,), 1, edits=8 if edits else 0, logprobs=count))
    sampling.temperature[:], sampling.repetition[:] = (0.0, 1.0, 0.7, 1.3, 1.0), 1.0
    sampling.top_k[:], sampling.top_p[:], sampling.min_p[:] = (0, 5, 0, 40, 1), (1.0, 1.0, 0.6, 0.9, 1.0), (0.0, 0.0, 0.0, 0.1, 0.3)
    for words in (sampling.seed_low, sampling.seed_high, sampling.position):
        words[:] = random.integers(-(2**31), 2**31, samples)
    batch.sample_slot[:] = (3, 1, 5, 2, 4)
    if edits:
        sampling.edit_sample[:6], sampling.edit_token[:6] = (0, 1, 2, 3, 4, 0), np.arange(6) % vocab
        sampling.edit_count[:6], sampling.presence[:], sampling.edit_bias[:6] = 1, 1.5, (2.5, -np.inf, 0, 4, 1, 0.5)
    logits = random.normal(0, 3, (samples, vocab)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    staged, staged_sampling = unpack(packed.shape, tensor(packed.integers), tensor(packed.floats))
    ours, theirs = State(6, lambda n: torch.zeros(n, dtype=torch.int32)), State(6, lambda n: np.zeros(n, np.int32))
    spec = Sample(vocab=Dim(vocab))
    given = torch.from_numpy(logits.copy())
    made = sample(DEVICE, spec, given, staged_sampling, staged, ours)
    assert np.array_equal(given.numpy(), logits), "sampling changed its logits"
    return made, spec.reference(logits, sampling, batch, theirs), ours.last_token.numpy(), theirs.last_token


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("vocab", [1, 2, 33, 1000, 9001])
@pytest.mark.parametrize("seed", range(3))
def test_draws_and_ranks_are_the_references(vocab: int, seed: int, ties: bool) -> None:
    made, right, last, right_last = drawn(vocab, seed, ties=ties, edits=False)
    assert made.tokens.tolist() == right.tokens.tolist()
    assert last[1:].tolist() == right_last[1:].tolist()
    assert made.top_tokens.tolist() == right.top_tokens.tolist()
    assert np.allclose(made.logprob.numpy(), right.logprob, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_edited_logits_draw_the_references_tokens(seed: int) -> None:
    made, right, *_ = drawn(1000, seed, ties=True, edits=True)
    assert made.tokens.tolist() == right.tokens.tolist()


def test_a_block_that_is_source_and_target_is_read_before_it_is_written() -> None:
    group = StateGroup("full", (0,), {"k": StateArray(2, 4, "float32")}, block_tokens=2)
    state = TritonState(DEVICE, [group], [4], 1)
    values = np.random.default_rng(0).normal(size=(1, 2, 6, 4)).astype(np.float32)
    state.write(0, [1, 2, 3], {"k": values})
    state.copy(0, [1, 2], [2, 3])
    made = state.read(0, [1, 2, 3])["k"]
    assert np.array_equal(made, np.concatenate([values[:, :, :2], values[:, :, :2], values[:, :, 2:4]], axis=2))


def test_codes_are_read_back_with_their_scales() -> None:
    arrays = {"k": StateArray(3, 5, "int8"), "k_scale": StateArray(3, 1, "float32")}
    state = TritonState(DEVICE, [StateGroup("full", (0, 1), arrays, block_tokens=3)], [5], 1)
    random = np.random.default_rng(1)
    given = {"k": random.integers(-128, 128, (2, 3, 6, 5)).astype(np.int8), "k_scale": random.normal(size=(2, 3, 6, 1)).astype(np.float32)}
    state.write(0, [4, 2], given)
    read = state.read(0, [4, 2])
    assert all(np.array_equal(read[name], given[name]) for name in given)
    assert SimpleNamespace(**state.read(0, [1])).k.max() == 0
