"""The C++ kernels of the cpu platform against float64 NumPy, on every path that this processor has."""
from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

native = pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), BF16, np.dtype(np.float16)]
PATHS = native.features()["paths"]
GUARD = 3


@pytest.fixture(params=PATHS)
def path(request):
    native.select(request.param)
    yield request.param
    native.select("auto")


@pytest.fixture(params=DTYPES, ids=lambda d: d.name)
def dtype(request):
    return request.param


def numbers(seed, shape, dtype=np.float32, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


class Guarded:
    """An output between guard rows: `.out` is written by a kernel, `check()` sees that nothing else was."""

    def __init__(self, shape, dtype):
        size = int(np.prod(shape))
        self.memory = np.full(size + 2 * 64 * GUARD, 77, dtype)
        self.out = self.memory[64 * GUARD : 64 * GUARD + size].reshape(shape)
        self.size = size

    def check(self):
        assert (self.memory[: 64 * GUARD] == 77).all(), "wrote before the output"
        assert (self.memory[64 * GUARD + self.size :] == 77).all(), "wrote behind the output"
        return self.out


def bits(array):
    return array.view(f"u{array.itemsize}")


def half_ulp(values, dtype):
    info = ml_dtypes.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.smallest_normal))))
    return np.exp2(exponent) * float(info.eps) / 2


def assert_within(actual, expected, depth, magnitude=None):
    """Half an ulp of the output's type plus `depth` float32 roundings of the magnitude."""
    scale = np.abs(expected) if magnitude is None else magnitude
    bound = half_ulp(expected, actual.dtype) + depth * 2.0**-24 * scale
    error = np.abs(actual.astype(np.float64) - expected)
    assert (error <= bound).all(), f"worst {np.max(error / bound):.3g} bounds at {np.unravel_index(np.argmax(error / bound), error.shape)}"


def run_linear(x, packed, widths, out_dtype=None, biases=None):
    guarded = [Guarded((len(x), width), out_dtype or x.dtype) for width in widths]
    native.linear(x, packed, tuple(g.out for g in guarded), biases)
    return [g.check() for g in guarded]


# --- linear -------------------------------------------------------------------------------------------------------

SHAPES = [(1, 64, 64), (2, 128, 64), (3, 65, 70), (4, 1, 1), (5, 7, 129), (7, 300, 33), (16, 512, 96), (48, 258, 200), (130, 131, 65),
          (517, 96, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_linear_is_within_its_rounding_bound(path, dtype, shape):
    rows, inputs, outputs = shape
    x, weight = numbers(1, (rows, inputs), dtype), numbers(2, (outputs, inputs), dtype)
    (out,) = run_linear(x, native.pack_linear([weight]), [outputs])
    x64, w64 = x.astype(np.float64), weight.astype(np.float64)
    assert_within(out, x64 @ w64.T, inputs, np.abs(x64) @ np.abs(w64).T)


def test_linear_in_float32_out_keeps_the_unrounded_sums(path):
    x, weight = numbers(1, (9, 333), BF16), numbers(2, (77, 333), BF16)
    (out,) = run_linear(x, native.pack_linear([weight]), [77], np.float32)
    x64, w64 = x.astype(np.float64), weight.astype(np.float64)
    assert_within(out, x64 @ w64.T, 333, np.abs(x64) @ np.abs(w64).T)


@pytest.mark.parametrize("widths", [(64, 64, 64), (96, 16, 16), (5, 1, 130), (63, 2)], ids=str)
def test_a_fused_linear_splits_its_columns_and_adds_each_bias(path, dtype, widths):
    x = numbers(1, (11, 130), dtype)
    weights = [numbers(10 + i, (n, 130), dtype) for i, n in enumerate(widths)]
    biases = tuple(None if i == 1 else numbers(20 + i, (n,), dtype) for i, n in enumerate(widths))
    outs = run_linear(x, native.pack_linear(weights), widths, biases=biases)
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        x64, w64 = x.astype(np.float64), weight.astype(np.float64)
        b64 = 0 if bias is None else bias.astype(np.float64)
        assert_within(out, x64 @ w64.T + b64, 132, np.abs(x64) @ np.abs(w64).T + np.abs(b64))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [64, 100, 5], ids=str)
def test_a_gated_linear_is_the_activation_of_its_unrounded_sums(path, dtype, kind, width):
    x, gate, up = numbers(1, (300, 70), dtype), numbers(2, (width, 70), dtype), numbers(3, (width, 70), dtype)
    bias = numbers(4, (width,), dtype)
    panels = -(-width // 64)
    packed = native.allocate(native.packed_bytes(128 * panels, 70, dtype.name))
    for panel in range(panels):
        for place, part in enumerate((gate, up)):
            native.pack_part(packed, 128 * panels, 128 * panel + 64 * place, part[64 * panel : 64 * panel + 64])
    out, apart = np.empty((300, width), dtype), np.empty((300, width), np.float32)
    native.gated_linear(x, packed, out, [None, bias], kind)
    sums = run_linear(x, native.pack_linear([gate, up]), [width, width], np.float32, biases=(None, bias))
    native.gated_activation(*sums, kind, apart)
    np.testing.assert_array_equal(bits(out), bits(apart.astype(dtype)))


@pytest.mark.parametrize("inputs", [64, 333, 2048], ids=str)
def test_a_row_of_linear_has_the_same_bits_alone_and_in_any_batch(path, dtype, inputs):
    x, weight = numbers(1, (130, inputs), dtype), numbers(2, (100, inputs), dtype)
    packed = native.pack_linear([weight])
    alone = np.concatenate([run_linear(x[i : i + 1], packed, [100])[0] for i in range(130)])
    for rows in [*range(2, 20), 31, 48, 64, 65, 96, 112, 113, 129, 130]:
        (batch,) = run_linear(x[:rows], packed, [100])
        np.testing.assert_array_equal(bits(batch), bits(alone[:rows]), err_msg=f"{rows} rows")


def test_a_row_of_linear_has_the_same_bits_beyond_a_slab(dtype):
    x, weight = numbers(1, (1100, 70), dtype), numbers(2, (70, 70), dtype)
    packed = native.pack_linear([weight])
    (batch,) = run_linear(x, packed, [70])
    for i in (0, 257, 258, 543, 544, 1031, 1032, 1099):
        np.testing.assert_array_equal(bits(run_linear(x[i : i + 1], packed, [70])[0]), bits(batch[i : i + 1]))


def test_packing_part_by_part_gives_the_bits_of_packing_at_once(dtype):
    weights = [numbers(i, (n, 51), dtype) for i, n in enumerate((40, 7, 90))]
    whole = native.pack_linear(weights)
    parts = native.allocate(native.packed_bytes(137, 51, dtype.name))
    for first, weight in zip((0, 40, 47), weights, strict=True):
        native.pack_part(parts, 137, first, weight)
    np.testing.assert_array_equal(whole, parts)
    assert whole.ctypes.data % 64 == 0


def test_packing_reads_a_mapped_read_only_file(tmp_path):
    weight = numbers(1, (70, 40))
    np.save(tmp_path / "w.npy", weight)
    np.testing.assert_array_equal(native.pack_linear([np.load(tmp_path / "w.npy", mmap_mode="r")]), native.pack_linear([weight]))


def test_linear_repeats_itself_to_the_bit(path, dtype):
    x, packed = numbers(1, (37, 500), dtype), native.pack_linear([numbers(2, (300, 500), dtype)])
    first = run_linear(x, packed, [300])[0].copy()
    for _ in range(20):
        np.testing.assert_array_equal(bits(run_linear(x, packed, [300])[0]), bits(first))


@pytest.mark.parametrize("threads", [1, 2, 5], ids=lambda n: f"{n}-threads")
def test_threads_do_not_change_a_bit(dtype, threads):
    x, packed = numbers(1, (37, 500), dtype), native.pack_linear([numbers(2, (300, 500), dtype)])
    native.set_threads(1)
    expected = run_linear(x, packed, [300])[0].copy()
    native.set_threads(threads)
    np.testing.assert_array_equal(bits(run_linear(x, packed, [300])[0]), bits(expected))
    native.set_threads(0)


def test_nan_in_one_row_of_linear_stays_in_that_row(path, dtype):
    x, packed = numbers(1, (13, 67), dtype), native.pack_linear([numbers(2, (70, 67), dtype)])
    clean = run_linear(x, packed, [70])[0].copy()
    x[4] = np.nan
    out = run_linear(x, packed, [70])[0]
    assert np.isnan(out[4].astype(np.float32)).all()
    np.testing.assert_array_equal(bits(np.delete(out, 4, 0)), bits(np.delete(clean, 4, 0)))


# --- attention ----------------------------------------------------------------------------------------------------


class Paged:
    """K and V of ragged rows, scattered over blocks; every unused slot holds poison."""

    def __init__(self, seed, dtype, rows, *, kv_heads=2, key_dim=64, value_dim=64, block_tokens=16, poison=np.nan, tail_tokens=0):
        rng = np.random.default_rng(seed)
        self.rows, self.dtype, self.block_tokens = rows, dtype, block_tokens
        counts = [-(-length // block_tokens) for _, length in rows]
        blocks = sum(counts) + 3
        self.k_cache = np.full((blocks, kv_heads, block_tokens, key_dim), poison, dtype)
        self.v_cache = np.full((blocks, kv_heads, block_tokens, value_dim), poison, dtype)
        free = rng.permutation(np.arange(1, blocks))
        self.table = np.zeros((len(rows), max(counts, default=0) + 1), np.int32)
        self.keys, self.values = [], []
        for row, (_, length) in enumerate(rows):
            mine, free = free[: counts[row]], free[counts[row] :]
            self.table[row, : counts[row]] = mine
            k, v = (rng.standard_normal((length, kv_heads, dim)).astype(dtype) for dim in (key_dim, value_dim))
            positions = np.arange(length)
            slots = (mine[positions // block_tokens] * block_tokens + positions % block_tokens).astype(np.int32)
            native.write_kv(k, v, self.k_cache, self.v_cache, slots, None, None)
            self.keys.append(k)
            self.values.append(v)
        self.starts = np.concatenate([[0], np.cumsum([n for n, _ in rows])]).astype(np.int32)
        self.lengths = np.array([length for _, length in rows], np.int32)
        self.tokens = int(self.starts[-1]) + tail_tokens

    def run(self, q, *, scale=0.125, window=0, softcap=0.0, sinks=None):
        guarded = Guarded((len(q), q.shape[1], self.v_cache.shape[3]), self.dtype)
        native.attention(q, self.k_cache, self.v_cache, guarded.out, self.table, self.starts, self.lengths, scale, window, softcap, sinks,
                         None, None, None)
        return guarded.check()


def naive_attention(paged, q, *, scale=0.125, window=0, softcap=0.0, sinks=None, work=np.float64):
    """[tokens, heads, value_dim]; sums run in order in float32 (or float64) and each step is rounded to `work`."""
    inner = np.float64 if work is np.float64 else np.float32

    def cast(a):
        return np.asarray(a, inner).astype(work).astype(inner)

    def total_of(a, axis):
        return np.cumsum(a, axis=axis, dtype=inner).take(-1, axis=axis)

    out = np.zeros((*q.shape[:2], paged.v_cache.shape[3]), np.float64)
    group = q.shape[1] // paged.k_cache.shape[1]
    for row, (start, stop) in enumerate(pairwise(paged.starts)):
        for token in range(start, stop):
            p = paged.lengths[row] - (stop - token)
            low = max(0, p - window + 1) if window else 0
            for head in range(q.shape[1]):
                k, v = (a[row][low : p + 1, head // group].astype(inner) for a in (paged.keys, paged.values))
                s = cast(cast(total_of(k * q[token, head].astype(inner), 1)) * inner(scale))
                if softcap:
                    s = cast(inner(softcap) * np.tanh(s / inner(softcap)))
                peak = max(s.max(), inner(sinks[head])) if sinks is not None else s.max()
                w = cast(np.exp(s - peak))
                total = total_of(w, 0) + (np.exp(inner(sinks[head]) - peak) if sinks is not None else 0)
                out[token, head] = cast(total_of(cast(w / total)[:, None] * v, 0))
    return out


def assert_as_good_as_naive(actual, paged, q, **options):
    expected = naive_attention(paged, q, **options)
    naive = naive_attention(paged, q, work=paged.dtype, **options)
    error, usual = np.abs(actual.astype(np.float64) - expected), np.abs(naive - expected)
    usual = np.maximum(usual, half_ulp(expected, actual.dtype))
    assert error.max() <= 2 * usual.max()
    assert np.sqrt(np.mean(error**2)) <= 2 * np.sqrt(np.mean(usual**2))


MIXED = [(1, 1), (1, 64), (5, 5), (1, 65), (70, 70), (0, 9), (9, 130), (1, 200)]
GEOMETRY = {
    "32-8-64": dict(heads=8, kv_heads=2, key_dim=64, value_dim=64),
    "group-of-7": dict(heads=14, kv_heads=2, key_dim=64, value_dim=64),
    "mqa-128": dict(heads=8, kv_heads=1, key_dim=128, value_dim=128),
    "mha-80": dict(heads=3, kv_heads=3, key_dim=80, value_dim=80),
    "96": dict(heads=4, kv_heads=2, key_dim=96, value_dim=96),
    "256": dict(heads=2, kv_heads=1, key_dim=256, value_dim=256),
    "odd": dict(heads=2, kv_heads=1, key_dim=33, value_dim=21),
    "one": dict(heads=2, kv_heads=2, key_dim=1, value_dim=1),
    "latent": dict(heads=5, kv_heads=1, key_dim=72, value_dim=64),
}


def paged_and_queries(seed, dtype, rows, heads=8, tail_tokens=0, **geometry):
    paged = Paged(seed, dtype, rows, tail_tokens=tail_tokens, **geometry)
    return paged, numbers(seed + 1, (paged.tokens, heads, paged.k_cache.shape[3]), dtype)


@pytest.mark.parametrize("geometry", GEOMETRY.values(), ids=GEOMETRY)
def test_attention_errs_no_more_than_twice_a_naive_evaluation(path, dtype, geometry):
    paged, q = paged_and_queries(3, dtype, MIXED, **geometry)
    assert_as_good_as_naive(paged.run(q), paged, q)


OPTIONS = {"window-1": dict(window=1), "window-16": dict(window=16), "window-63": dict(window=63),
           "window-64": dict(window=64), "window-65": dict(window=65),
           "softcap": dict(softcap=5.0), "all": dict(window=20, softcap=3.0)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_window_and_softcap_are_honoured(path, dtype, options):
    paged, q = paged_and_queries(4, dtype, MIXED)
    assert_as_good_as_naive(paged.run(q, **options), paged, q, **options)


@pytest.mark.parametrize("sink", [-60.0, 0.5, 60.0], ids=str)
def test_sinks_take_part_in_the_softmax(path, dtype, sink):
    paged, q = paged_and_queries(5, dtype, MIXED)
    sinks = (np.arange(8) * 0.1 + sink).astype(np.float32)
    assert_as_good_as_naive(paged.run(q, sinks=sinks), paged, q, sinks=sinks)


@pytest.mark.parametrize("block_tokens", [1, 3, 8, 16, 32, 64, 128], ids=str)
def test_any_block_size_gives_the_same_bits(path, dtype, block_tokens):
    paged, q = paged_and_queries(6, dtype, MIXED)
    other, _ = paged_and_queries(6, dtype, MIXED, block_tokens=block_tokens)
    other.keys, other.values = paged.keys, paged.values
    for row, (_, length) in enumerate(other.rows):
        positions = np.arange(length)
        slots = (other.table[row, positions // block_tokens] * block_tokens + positions % block_tokens).astype(np.int32)
        native.write_kv(paged.keys[row], paged.values[row], other.k_cache, other.v_cache, slots, None, None)
    np.testing.assert_array_equal(bits(other.run(q)), bits(paged.run(q)))


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e4, -7.0], ids=str)
def test_unused_slots_do_not_change_a_bit(path, dtype, poison):
    paged, q = paged_and_queries(7, dtype, MIXED, poison=0.0)
    poisoned, _ = paged_and_queries(7, dtype, MIXED, poison=poison)
    np.testing.assert_array_equal(bits(poisoned.run(q)), bits(paged.run(q)))


def test_table_entries_behind_the_window_are_not_read(path, dtype):
    paged, q = paged_and_queries(8, dtype, [(3, 200), (1, 130)])
    expected = paged.run(q, window=20).copy()
    paged.table[0, : (200 - 3 - 19) // 16] = 0
    paged.table[1, : (130 - 20) // 16] = 0
    paged.k_cache[0] = paged.v_cache[0] = np.nan
    np.testing.assert_array_equal(bits(paged.run(q, window=20)), bits(expected))


@pytest.mark.parametrize("window", [0, 37], ids=lambda w: f"window-{w}")
@pytest.mark.parametrize("group", [1, 4, 7], ids=lambda g: f"group-{g}")
def test_a_query_has_the_same_bits_in_prefill_chunk_and_decode(path, dtype, window, group):
    paged, q = paged_and_queries(9, dtype, [(150, 150)], heads=2 * group)
    whole = paged.run(q, window=window).copy()
    for chunks in ([1] * 150, [64, 64, 22], [7, 100, 1, 42]):
        done = 0
        for count in chunks:
            paged.starts = np.array([0, count], np.int32)
            paged.lengths = np.array([done + count], np.int32)
            part = paged.run(np.ascontiguousarray(q[done : done + count]), window=window)
            np.testing.assert_array_equal(bits(part), bits(whole[done : done + count]), err_msg=f"{chunks} at {done}")
            done += count


def test_a_row_has_the_same_bits_whatever_its_neighbours(path, dtype):
    paged, q = paged_and_queries(10, dtype, MIXED)
    together = paged.run(q).copy()
    starts, lengths, table = paged.starts, paged.lengths, paged.table
    for row, (start, stop) in enumerate(pairwise(starts)):
        paged.starts, paged.lengths, paged.table = np.array([0, stop - start], np.int32), lengths[row : row + 1], table[row : row + 1]
        np.testing.assert_array_equal(bits(paged.run(np.ascontiguousarray(q[start:stop]))), bits(together[start:stop]))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("window", [0, 10], ids=lambda w: f"window-{w}")
def test_a_bad_value_reaches_only_the_queries_that_see_it(path, dtype, value, window):
    paged, q = paged_and_queries(11, dtype, [(100, 100)])
    clean = paged.run(q, window=window).copy()
    paged.k_cache[paged.table[0, 50 // 16], :, 50 % 16] = value
    paged.v_cache[paged.table[0, 50 // 16], :, 50 % 16] = value
    out = paged.run(q, window=window)
    blind = np.r_[0:50, 60:100] if window else np.r_[0:50]
    np.testing.assert_array_equal(bits(out[blind]), bits(clean[blind]))
    assert np.isnan(out[50:60].astype(np.float32)).any()


def test_padding_tokens_get_zeros_and_padding_rows_are_skipped(path, dtype):
    paged, q = paged_and_queries(12, dtype, [(4, 20), (0, 0), (0, 0)], tail_tokens=5)
    out = paged.run(q)
    assert (out[4:] == 0).all() and (out[:4] != 0).any()


def test_attention_without_tokens_or_rows_does_nothing(dtype):
    paged = Paged(1, dtype, [])
    assert paged.run(np.zeros((0, 8, 64), dtype)).shape == (0, 8, 64)
    assert (paged.run(np.ones((2, 8, 64), dtype)) == 0).all()


def test_large_scores_do_not_overflow(path, dtype):
    paged, q = paged_and_queries(13, dtype, MIXED)
    assert_as_good_as_naive(paged.run(q, scale=20.0), paged, q, scale=20.0)


def test_attention_repeats_itself_to_the_bit(path, dtype):
    paged, q = paged_and_queries(14, dtype, MIXED)
    first = paged.run(q).copy()
    for _ in range(10):
        np.testing.assert_array_equal(bits(paged.run(q)), bits(first))


@pytest.mark.skipif(os.environ.get("INFERPLANE_LARGE") != "1", reason="needs 9 GiB; INFERPLANE_LARGE=1 runs it")
def test_pools_beyond_2_31_elements_are_addressed_in_64_bits():
    shape = (2**31 // (16 * 64) + 8, 1, 16, 64)
    k_cache, v_cache = np.zeros(shape, BF16), np.zeros(shape, BF16)
    k, v, q = (numbers(i, (20, 1, 64), BF16) for i in range(3))
    table = np.array([[shape[0] - 1, shape[0] - 2]], np.int32)
    slots = (table[0, np.arange(20) // 16].astype(np.int64) * 16 + np.arange(20) % 16).astype(np.int32)
    native.write_kv(k, v, k_cache, v_cache, slots, None, None)
    np.testing.assert_array_equal(bits(k_cache[-1, 0]), bits(k[:16, 0]))
    out = np.empty((20, 1, 64), BF16)
    starts, lengths = np.array([0, 20], np.int32), np.array([20], np.int32)
    native.attention(q, k_cache, v_cache, out, table, starts, lengths, 0.125, 0, 0.0, None, None, None, None)
    small = Paged(0, BF16, [(20, 20)], kv_heads=1)
    slots = (small.table[0, np.arange(20) // 16] * 16 + np.arange(20) % 16).astype(np.int32)
    native.write_kv(k, v, small.k_cache, small.v_cache, slots, None, None)
    np.testing.assert_array_equal(bits(out), bits(small.run(q)))


def test_write_kv_puts_each_token_into_its_slot_and_nothing_else(dtype):
    k, v = numbers(1, (5, 3, 10), dtype), numbers(2, (5, 3, 7), dtype)
    k_cache, v_cache = Guarded((6, 3, 4, 10), dtype), Guarded((6, 3, 4, 7), dtype)
    slots = np.array([5, 23, 0, 8, 3], np.int32)
    native.write_kv(k, v, k_cache.out, v_cache.out, slots, None, None)
    for source, cache in ((k, k_cache.check()), (v, v_cache.check())):
        expected = np.full_like(cache, 77)
        for token, slot in enumerate(slots):
            if slot >= 4:
                expected[slot // 4, :, slot % 4] = source[token]
        np.testing.assert_array_equal(bits(cache), bits(expected))


# --- rows ---------------------------------------------------------------------------------------------------------

ROW_SHAPES = [(1, 1), (3, 15), (2, 16), (5, 17), (1, 2048), (67, 64), (9, 4, 80), (300, 513)]


@pytest.fixture(params=ROW_SHAPES, ids=lambda s: "x".join(map(str, s)))
def row_shape(request):
    return request.param


@pytest.mark.parametrize("weight_dtype", ["own", "float32"])
@pytest.mark.parametrize("offset", [0.0, 1.0], ids=lambda o: f"offset-{o:g}")
def test_rms_norm_is_within_its_bound(path, dtype, row_shape, weight_dtype, offset):
    x = numbers(1, row_shape, dtype, 3.0)
    weight = numbers(2, row_shape[-1:], dtype if weight_dtype == "own" else np.float32)
    out = Guarded(row_shape, dtype)
    native.rms_norm(x, weight, 1e-5, offset, out.out)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt(np.mean(x64**2, -1, keepdims=True) + 1e-5) * (weight.astype(np.float64) + offset)
    assert_within(out.check(), expected, 16, np.abs(expected) + np.abs(x64))


def test_add_rms_norm_is_the_norm_of_the_rounded_sum(path, dtype, row_shape):
    x, residual, weight = numbers(1, row_shape, dtype), numbers(2, row_shape, dtype), numbers(3, row_shape[-1:], dtype)
    out, total, expected, expected_sum = (Guarded(row_shape, dtype) for _ in range(4))
    native.add_rms_norm(x, residual, weight, 1e-6, 0.0, out.out, total.out)
    native.add(x, residual, expected_sum.out)
    native.rms_norm(expected_sum.out, weight, 1e-6, 0.0, expected.out)
    np.testing.assert_array_equal(bits(total.check()), bits(expected_sum.check()))
    np.testing.assert_array_equal(bits(out.check()), bits(expected.check()))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_layer_norm_is_within_its_bound(path, dtype, row_shape, bias):
    x, weight, shift = numbers(1, row_shape, dtype), numbers(2, row_shape[-1:], dtype), numbers(3, row_shape[-1:], dtype)
    out = Guarded(row_shape, dtype)
    native.layer_norm(x, weight, shift if bias else None, 1e-5, out.out)
    x64 = x.astype(np.float64)
    centred = x64 - x64.mean(-1, keepdims=True)
    factor = weight.astype(np.float64) / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = centred * factor + (shift.astype(np.float64) if bias else 0)
    assert_within(out.check(), expected, 64, np.abs(expected) + (np.abs(x64) + 1) * np.abs(factor) + np.abs(shift.astype(np.float64)))


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dims", [(64, 64), (80, 32), (6, 6), (34, 34), (7, 2)], ids=str)
def test_rope_turns_pairs_by_position(path, dtype, dims, interleaved):
    head_dim, turned = dims
    half = turned // 2
    positions = np.array([0, 1, 500, 7, 499], np.int32)
    angles = np.arange(501)[:, None] * (10000.0 ** (-np.arange(half) / half))[None, :]
    table = np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    x = numbers(1, (5, 3, head_dim), dtype)
    out = Guarded(x.shape, dtype)
    native.rope(x, positions, table, interleaved, out.out)
    cos, sin = (table[positions, part].astype(np.float64)[:, None] for part in (slice(0, half), slice(half, None)))
    first, second = (slice(0, turned, 2), slice(1, turned, 2)) if interleaved else (slice(0, half), slice(half, turned))
    x64 = x.astype(np.float64)
    expected, magnitude = x64.copy(), np.abs(x64)
    expected[..., first] = x64[..., first] * cos - x64[..., second] * sin
    expected[..., second] = x64[..., second] * cos + x64[..., first] * sin
    magnitude[..., :turned] = np.abs(x64[..., :turned]).max(-1, keepdims=True) * 2
    assert_within(out.check(), expected, 4, magnitude)
    native.rope(x, positions, table, interleaved, x)
    np.testing.assert_array_equal(bits(x), bits(out.out), err_msg="in place")


def test_rope_of_an_untouched_tail_keeps_its_bits(dtype):
    x = numbers(1, (2, 2, 20), dtype)
    out = np.empty_like(x)
    native.rope(x, np.array([3, 1], np.int32), np.ones((4, 8), np.float32), False, out)
    np.testing.assert_array_equal(bits(out[..., 8:]), bits(x[..., 8:]))


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("tokens", [1, 4, 7, 300], ids=str)
def test_qkv_rope_write_has_the_bits_of_rope_and_write_kv(path, dtype, tokens, interleaved):
    q, k, v = (numbers(i, (tokens, heads, 20), dtype) for i, heads in enumerate((6, 2, 2)))
    positions = np.random.default_rng(1).integers(0, 50, tokens, np.int32)
    table = numbers(4, (64, 16))
    slots = np.random.default_rng(2).permutation(16 * 25)[:tokens].astype(np.int32)
    fused, parts = ([Guarded((25, 2, 16, 20), dtype) for _ in "kv"] for _ in range(2))
    turned_q, turned_k, out = np.empty_like(q), np.empty_like(k), Guarded(q.shape, dtype)
    native.rope(q, positions, table, interleaved, turned_q)
    native.rope(k, positions, table, interleaved, turned_k)
    native.write_kv(turned_k, v, *(cache.out for cache in parts), slots, None, None)
    native.qkv_rope_write(q, k, v, positions, table, interleaved, out.out, *(cache.out for cache in fused), slots, None, None)
    np.testing.assert_array_equal(bits(out.check()), bits(turned_q))
    for one, other in zip(fused, parts, strict=True):
        np.testing.assert_array_equal(bits(one.check()), bits(other.check()))


def exact_activation(kind, x):
    from math import erfc

    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "tanh":
        return np.tanh(x)
    if kind == "gelu":
        return x * 0.5 * np.vectorize(erfc, otypes=[float])(-x / np.sqrt(2))
    exponent = x if kind == "silu" else 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-np.maximum(exponent, -700)))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "tanh"])
def test_activations_are_within_their_bound(path, dtype, kind, gated):
    x = np.concatenate([numbers(1, 1000, dtype, 3.0), np.linspace(-12, 12, 1003).astype(dtype), np.array([0.0, -0.0, 60, 200], dtype)])
    up = numbers(2, x.shape, dtype)
    out = Guarded(x.shape, dtype)
    native.gated_activation(x, up, kind, out.out) if gated else native.activation(x, kind, out.out)
    expected = exact_activation(kind, x.astype(np.float64)) * (up.astype(np.float64) if gated else 1)
    # The tail of e^x has the condition |x|: its roundings multiply. Subnormal results keep their magnitude only.
    assert_within(out.check(), expected, 32 + 4 * 64, np.abs(expected) + 2.0**-118)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "tanh"])
def test_activations_are_near_float32_exact_where_models_use_them(path, kind):
    x = np.linspace(-5, 5, 20001).astype(np.float32)
    out = np.empty_like(x)
    native.activation(x, kind, out)
    assert_within(out, exact_activation(kind, x.astype(np.float64)), 32)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "tanh"])
def test_activations_keep_nan(path, dtype, kind):
    x = np.full(40, np.nan, dtype)
    out = np.zeros_like(x)
    native.activation(x, kind, out)
    assert np.isnan(out.astype(np.float32)).all()


SIZES = [1, 15, 16, 17, 1000, 70001]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_arithmetic_is_correctly_rounded(path, dtype, size):
    a, b = numbers(1, size, dtype), numbers(2, size, dtype)
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    for run, expected in ((lambda o: native.add(a, b, o), wide_a + wide_b), (lambda o: native.multiply(a, b, o), wide_a * wide_b),
                          (lambda o: native.scale(a, 1.7, o), wide_a * np.float32(1.7))):
        out = Guarded(a.shape, dtype)
        run(out.out)
        np.testing.assert_array_equal(bits(out.check()), bits(expected.astype(dtype)))


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)], ids=lambda d: d.name)
def test_every_half_survives_and_rounding_is_to_nearest_even(path, dtype):
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    out = np.empty_like(every)
    native.scale(every, 1.0, out)
    nan = np.isnan(every.astype(np.float32))
    np.testing.assert_array_equal(bits(out)[~nan], bits(every)[~nan])
    assert np.isnan(out.astype(np.float32))[nan].all()
    for factor in (1.00390625, 0.333, 1e-3, 3e4):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (every.astype(np.float32) * np.float32(factor)).astype(dtype)
        native.scale(every, factor, out)
        np.testing.assert_array_equal(bits(out)[~nan], bits(expected)[~nan])


def test_take_rows_copies_rows_to_the_bit(dtype):
    table = numbers(1, (50, 37), dtype)
    table[3] = np.nan
    rows = np.array([49, 0, 3, 3, 17], np.int32)
    out = Guarded((5, 37), dtype)
    native.take_rows(table, rows, out.out)
    np.testing.assert_array_equal(bits(out.check()), bits(table[rows]))


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (1000, 300), (2, 3, 200_000)], ids=str)
def test_a_result_has_its_shape_its_type_and_room_of_its_own(dtype, shape):
    one, other = native.empty(shape, dtype), native.empty(shape, dtype)
    one[...], other[...] = 1, 2
    assert (one.shape, one.dtype, one.flags.c_contiguous, one.flags.writeable) == (shape, dtype, True, True)
    assert (one == 1).all()
    assert (other == 2).all()


def test_a_result_takes_over_pages_only_when_nobody_holds_them():
    held = native.empty((1 << 20,), np.float32)
    held[:] = 3
    view, address = held[5:].reshape(-1, 1), held.ctypes.data
    del held
    others = [native.empty((1 << 20,), np.float32) for _ in range(4)]
    for other in others:
        other[:] = 4
    assert (view == 3).all()
    assert address not in [other.ctypes.data for other in others]
    del view
    assert native.empty((1 << 20,), np.float32).ctypes.data == address


def test_idle_pages_do_not_pile_up():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    before = resident()
    for megabytes in range(40, 140, 10):  # 900 MB in all, no one of which fits twice
        native.empty((megabytes << 20,), np.uint8)[:] = 1
    assert resident() - before < 400 << 20


@pytest.mark.parametrize(("shape", "kind"), [((-1, 3), np.float32), ("ab", np.float32), ((2, 3), "no type")], ids=str)
def test_a_result_of_nonsense_is_refused(shape, kind):
    with pytest.raises((ValueError, TypeError)):
        native.empty(shape, kind)


# --- sampling -----------------------------------------------------------------------------------------------------


def threefry(key, counter):
    rotations, with_wrap = ((13, 15, 26, 6), (17, 29, 16, 24)), np.errstate(over="ignore")
    with with_wrap:
        key0, key1, x, y = (np.atleast_1d(w).astype(np.uint32) for w in (*key, *counter))
        keys = (key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA))
        x, y = x + keys[0], y + keys[1]
        for group in range(5):
            for rotation in rotations[group % 2]:
                x = x + y
                y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
            x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
        return x, y


def exact_sample(logits, temperature, top_k, top_p, min_p, seed_low, seed_high, index, position):
    logits, vocab = logits.astype(np.float64), len(logits)
    if temperature == 0:
        return int(np.argmax(logits))
    scores = logits / np.float64(temperature)
    kept = np.ones(vocab, bool)
    if (0 < top_k < vocab) or top_p < 1 or min_p > 0:
        order = np.argsort(-scores, kind="stable")
        order = order[:top_k] if 0 < top_k < vocab else order
        weights = np.exp(scores[order] - scores[order[0]])
        if top_p < 1:
            before = np.cumsum(weights) - weights
            count = max(1, int(np.sum(before < np.float64(top_p) * weights.sum())))
            order, weights = order[:count], weights[:count]
        kept[:] = False
        kept[order[weights >= np.float64(min_p)]] = True
    key = threefry((seed_low, seed_high), (index, position))
    words = threefry(key, (np.arange((vocab + 1) // 2), 0))
    word = np.stack(words, -1).reshape(-1)[:vocab]
    u = np.minimum(((word >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24), np.float32(1 - 2.0**-24))
    noise = -np.log(-np.log(u.astype(np.float64)))
    return int(np.argmax(np.where(kept, scores + noise, -np.inf)))


def run_sample(logits, **rows):
    samples = len(logits)
    default = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed_low=1, seed_high=2, index=0, position=0)
    types = dict(temperature=np.float32, top_k=np.int32, top_p=np.float32, min_p=np.float32)
    arrays = [np.full(samples, rows.get(name, value)).astype(types.get(name, np.uint32)) if np.ndim(rows.get(name, value)) == 0
              else np.asarray(rows[name]).astype(types.get(name, np.uint32)) for name, value in default.items()]
    tokens = np.full(samples, -1, np.int32)
    native.sample(logits, *arrays, tokens)
    return tokens, arrays


FILTERS = {
    "plain": {}, "hot": dict(temperature=3.0), "cold": dict(temperature=0.05), "greedy": dict(temperature=0.0), "top-k-1": dict(top_k=1),
    "top-k-50": dict(top_k=50), "top-k-off": dict(top_k=-1), "top-k-vocab": dict(top_k=10**6),
    "top-p": dict(top_p=0.9), "top-p-0": dict(top_p=0.0), "top-p-wide": dict(top_p=0.999, temperature=2.0),
    "min-p": dict(min_p=0.1), "all": dict(top_k=40, top_p=0.8, min_p=0.05, temperature=0.7),
}


@pytest.mark.parametrize("vocab", [1, 2, 33, 1000, 5001], ids=str)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_sampling_draws_the_token_of_the_reference(path, vocab, filters):
    logits = numbers(vocab, (24, vocab), scale=2.0)
    tokens, arrays = run_sample(logits, index=np.arange(24), position=np.arange(24) * 7, seed_low=np.arange(24) * 2**27, **filters)
    assert tokens.tolist() == [exact_sample(logits[i], *(a[i] for a in arrays)) for i in range(24)]


@pytest.mark.parametrize("scale", [0.1, 6.0], ids=["flat", "steep"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_sampling_a_large_vocabulary_passes_over_no_winner(filters, scale):
    logits = numbers(5, (3, 40_003), scale=scale)
    tokens, arrays = run_sample(logits, index=np.arange(3), position=np.arange(3) * 11, seed_high=np.arange(3) + 9, **filters)
    assert tokens.tolist() == [exact_sample(logits[i], *(a[i] for a in arrays)) for i in range(3)]


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_ties_are_kept_and_won_by_the_lowest_id(path, filters):
    logits = np.repeat(numbers(1, (24, 11), scale=1.0), 30, axis=1)
    tokens, arrays = run_sample(logits, index=np.arange(24), **filters)
    assert tokens.tolist() == [exact_sample(logits[i], *(a[i] for a in arrays)) for i in range(24)]


def test_top_k_1_is_greedy_when_logits_tie(path):
    logits = np.zeros((4, 100), np.float32)
    assert run_sample(logits, top_k=1, index=np.arange(4))[0].tolist() == [0] * 4


def test_a_row_draws_the_same_whatever_its_neighbours(path):
    logits = numbers(1, (6, 777), scale=2.0)
    parameters = dict(top_k=np.array([0, 5, 0, 0, 3, 1]), top_p=np.array([1, 1, 0.5, 1, 0.9, 1]), index=np.arange(6))
    together = run_sample(logits, **parameters)[0]
    alone = [run_sample(logits[i : i + 1], **{name: values[i : i + 1] for name, values in parameters.items()})[0][0] for i in range(6)]
    assert together.tolist() == alone


def test_draws_follow_the_distribution(path):
    logits = np.tile(np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32)), (20000, 1))
    tokens, _ = run_sample(logits, index=np.arange(20000))
    counts = np.bincount(tokens, minlength=4)
    expected = np.array([0.5, 0.25, 0.125, 0.125]) * 20000
    assert ((counts - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees of freedom, p = 0.001


def test_forbidden_tokens_are_never_drawn(path):
    logits = np.full((50, 300), -np.inf, np.float32)
    logits[:, 7] = -1e30
    for filters in FILTERS.values():
        assert set(run_sample(logits, index=np.arange(50), **filters)[0].tolist()) == {7}


@pytest.mark.parametrize("vocab", [1, 5, 16, 17, 1000, 128_256], ids=str)
def test_greedy_takes_the_lowest_of_equal_maxima_and_never_nan(path, vocab):
    logits = np.round(numbers(1, (5, vocab), scale=4.0))
    logits[1, : vocab - 1] = np.nan
    logits[2] = np.nan
    logits[3] = -np.inf
    logits[4, : vocab - 1], logits[4, vocab - 1] = np.nan, -np.inf
    tokens = run_sample(logits, temperature=0.0)[0]
    assert tokens.tolist() == [int(np.argmax(logits[0])), vocab - 1, 0, 0, vocab - 1]


@pytest.mark.parametrize("count", [1, 5, 3001], ids=str)
def test_top_logprobs_are_the_likeliest_best_first_and_ties_to_the_lowest_id(path, count):
    logits = np.round(numbers(1, (3, 3001), scale=20.0)) / 4
    logits[1, 100:2000] = -np.inf
    wide = logits.astype(np.float64)
    expected = np.argsort(-wide, axis=-1, kind="stable")[:, :count]
    normal = wide - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True)) - wide.max(-1, keepdims=True)
    tokens, values = np.full((3, count), -9, np.int32), np.zeros((3, count), np.float32)
    native.top_logprobs(logits, tokens, values)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(values, np.take_along_axis(normal, expected, -1), rtol=1e-6, atol=1e-6)


def test_top_logprobs_of_a_row_with_too_few_numbers_end_in_none(path):
    logits, tokens, values = np.full((1, 40), np.nan, np.float32), np.zeros((1, 4), np.int32), np.zeros((1, 4), np.float32)
    logits[0, [30, 7]] = 1.0
    native.top_logprobs(logits, tokens, values)
    assert tokens.tolist() == [[7, 30, 0, 0]]
    assert np.isnan(values[0, 2:]).all()


@pytest.mark.parametrize("vocab", [1, 17, 1000, 128_256], ids=str)
def test_logprobs_and_logsumexp_are_near_exact(path, vocab):
    logits = numbers(1, (4, vocab), scale=5.0)
    logits[1] += 1000
    logits[2, : vocab // 2] = -np.inf
    tokens = np.argmax(logits, -1).astype(np.int32)
    chosen, total = np.empty(4, np.float32), np.empty(4, np.float32)
    native.logprobs(logits, tokens, chosen)
    native.logsumexp(logits, total)
    wide = logits.astype(np.float64)
    peak = wide.max(-1)
    expected = peak + np.log(np.exp(wide - peak[:, None]).sum(-1))
    assert_within(total, expected, 4, np.abs(expected) + 1)
    assert_within(chosen, wide[np.arange(4), tokens] - expected, 4, np.abs(expected - peak) + 1)


# --- arguments, paths, threads ------------------------------------------------------------------------------------


def test_wrong_arguments_raise_a_value_error_that_says_what_was_expected():
    x, packed, out = np.zeros((2, 8), np.float32), native.pack_linear([np.zeros((5, 8), np.float32)]), np.zeros((2, 5), np.float32)
    cache, ids = np.zeros((4, 2, 16, 8), np.float32), np.zeros(2, np.int32)
    q, kv = np.zeros((2, 4, 8), np.float32), np.zeros((2, 2, 8), np.float32)
    starts, table = np.array([0, 2], np.int32), np.zeros((1, 2), np.int32)
    constant = np.frombuffer(bytes(40), np.float32).reshape(2, 5)

    def attend(q, table, starts, length, window=0):
        lengths = np.array([length], np.int32)
        native.attention(q, cache, cache, q.copy(), table, starts, lengths, 1.0, window, 0.0, None, None, None, None)

    def turn_and_write(slots, positions=ids, out=q):
        native.qkv_rope_write(q, kv, kv, positions, np.zeros((9, 8), np.float32), False, out, cache, cache, slots, None, None)

    cases = [
        (lambda: native.linear(x.astype(BF16), packed, out, None), "bytes"),
        (lambda: native.linear(x, packed, np.zeros((3, 5), np.float32), None), "expected the shape"),
        (lambda: native.linear(x, packed, np.zeros((2, 64), np.float32).astype(np.float64), None), "known: float32"),
        (lambda: native.linear(x[:, ::2], packed, out, None), "not C-contiguous"),
        (lambda: native.linear(x, packed[:-4], out, None), "bytes"),
        (lambda: native.linear(x, packed, (), None), "no outputs"),
        (lambda: native.linear(x, packed, out, (None, None)), "entries"),
        (lambda: native.linear([1], packed, out, None), "not a NumPy array"),
        (lambda: native.linear(x, packed, constant, None), "read-only"),
        (lambda: native.pack_part(packed, 5, 3, np.zeros((4, 8), np.float32)), "do not fit"),
        (lambda: native.pack_linear([]), "no parts"),
        (lambda: native.pack_linear([x, np.zeros((2, 9), np.float32)]), "expected the shape"),
        (lambda: native.write_kv(kv, kv, cache, cache, np.array([0, 64], np.int32), None, None), "64 slots"),
        (lambda: native.write_kv(kv, kv, cache, cache, np.array([0, -1], np.int32), None, None), "64 slots"),
        (lambda: native.write_kv(kv.astype(BF16), kv, cache, cache, ids, None, None), "expected bfloat16"),
        (lambda: turn_and_write(np.array([0, 64], np.int32)), "64 slots"),
        (lambda: turn_and_write(ids, np.array([0, 9], np.int32)), "positions"),
        (lambda: turn_and_write(ids, out=q[:, :1].copy()), "like q"),
        (lambda: attend(q, table, starts, 1), "2 queries but the length 1"),
        (lambda: attend(q, table, starts, 33), "beyond its table"),
        (lambda: attend(q, table + 4, starts, 9), "names block 4"),
        (lambda: attend(q, table, starts + 1, 9), "starts run from"),
        (lambda: attend(q[:, :3].copy(), table, starts, 9), "do not divide"),
        (lambda: attend(q, table, starts, 9, window=-1), "window"),
        (lambda: native.rms_norm(x, np.zeros(7, np.float32), 1e-5, 0.0, x), "expected the shape"),
        (lambda: native.rope(q, np.array([0, 9], np.int32), np.zeros((9, 8), np.float32), False, q), "positions"),
        (lambda: native.rope(q, ids, np.zeros((9, 10), np.float32), False, q), "pairs"),
        (lambda: native.activation(x, "swish", x), "known: silu"),
        (lambda: native.add(x, x.astype(BF16), x), "like"),
        (lambda: native.take_rows(x, np.array([2], np.int32), np.zeros((1, 8), np.float32)), "there are 2"),
        (lambda: native.take_rows(x, np.array([1], np.int64), np.zeros((1, 8), np.float32)), "known: float32"),
        (lambda: run_sample(np.zeros((1, 0), np.float32)), "at least one token"),
        (lambda: run_sample(x, temperature=-1.0), "temperature"),
        (lambda: native.logprobs(x, ids + 8, np.zeros(2, np.float32)), "the vocabulary has 8"),
        (lambda: native.top_logprobs(x, np.zeros((2, 9), np.int32), np.zeros((2, 9), np.float32)), "1 to 8"),
        (lambda: native.select("mmx"), "known: auto"),
        (lambda: native.set_threads(-1), "threads"),
        (lambda: native.allocate(0), "at least 1"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="positional"):
        native.add(x, x)


@pytest.mark.parametrize("name", PATHS[1:])
def test_every_path_of_this_processor_agrees_with_the_portable_one(name):
    assert native.self_check(name) is None


def test_calls_from_several_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    packed = native.pack_linear([numbers(1, (512, 256), BF16)])
    xs = [numbers(i, (1 + i, 256), BF16) for i in range(8)]
    expected = [run_linear(x, packed, [512])[0].copy() for x in xs]

    def many(i):
        return all((bits(run_linear(xs[i], packed, [512])[0]) == bits(expected[i])).all() for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, range(8)))


def test_a_forked_child_computes_with_threads_of_its_own():
    import multiprocessing

    packed, x = native.pack_linear([numbers(1, (512, 256))]), numbers(2, (5, 256))
    expected = run_linear(x, packed, [512])[0].copy()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(run_linear(x, packed, [512])[0].tobytes()))
    child.start()
    assert queue.get(timeout=20) == expected.tobytes()
    child.join(20)
