"""The C++ attention over long rows, int8 cells, latent keys and ALiBi, on every path that this processor has."""
from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest


def _beside(name):
    """tests/ is no package: a module beside this file is loaded by its path."""
    spec = importlib.util.spec_from_file_location(f"inferplane_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")

from inferplane.ops.attention import coded  # noqa: E402

CPU = _beside("test_cpu_native")
BF16, Paged, assert_as_good_as_naive, bits, numbers = CPU.BF16, CPU.Paged, CPU.assert_as_good_as_naive, CPU.bits, CPU.numbers
path, dtype = CPU.path, CPU.dtype
CHUNK = 1024


def alone(paged, q, row, count, length, **options):
    """The last `count` of a row's first `length` tokens, in a batch of their own."""
    starts, lengths, table = paged.starts, paged.lengths, paged.table
    paged.starts, paged.lengths, paged.table = np.array([0, count], np.int32), np.array([length], np.int32), table[row : row + 1]
    out = paged.run(np.ascontiguousarray(q), **options)
    paged.starts, paged.lengths, paged.table = starts, lengths, table
    return out


@pytest.mark.parametrize("group", [1, 4, 16], ids=lambda g: f"group-{g}")
def test_rows_beyond_a_chunk_of_keys_err_no_more_than_twice_a_naive_evaluation(path, dtype, group):
    paged = Paged(1, dtype, [(1, 2 * CHUNK + 70), (3, CHUNK + 1), (1, CHUNK)], kv_heads=1, key_dim=64, value_dim=64)
    q = numbers(2, (paged.tokens, group, 64), dtype)
    assert_as_good_as_naive(paged.run(q), paged, q)


@pytest.mark.parametrize("window", [0, 100, CHUNK + 30], ids=lambda w: f"window-{w}")
@pytest.mark.parametrize("group", [1, 4, 12], ids=lambda g: f"group-{g}")
def test_prefill_and_decode_agree_to_the_bit_across_chunks_of_keys(path, dtype, window, group):
    length, count = 2 * CHUNK + 40, CHUNK + 60
    paged = Paged(3, dtype, [(count, length)], kv_heads=1)
    q = numbers(4, (count, group, 64), dtype)
    whole = paged.run(q, window=window).copy()
    first = length - count
    for position in (first, CHUNK, CHUNK + 99, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 29, length - 1):
        at = position - first
        one = alone(paged, q[at : at + 1], 0, 1, position + 1, window=window)
        np.testing.assert_array_equal(bits(one), bits(whole[at : at + 1]), err_msg=f"at {position}")


@pytest.mark.parametrize("rows", [[(1, 3000)], [(1, 2100), (1, 40)], [(40, 1100)], [(1, 300)] * 9], ids=["one", "two", "chunk", "nine"])
def test_threads_do_not_change_a_bit_of_attention(dtype, rows):
    paged = Paged(5, dtype, rows, kv_heads=3)
    q = numbers(6, (paged.tokens, 12, 64), dtype)
    native.set_threads(1)
    expected = paged.run(q).copy()
    for threads in (2, 5):
        native.set_threads(threads)
        np.testing.assert_array_equal(bits(paged.run(q)), bits(expected))
    native.set_threads(0)


class Variant:
    """A paged row in a cell of its own kind, and what float64 makes of it."""

    def __init__(self, dtype, *, rows, heads=8, kv_heads=2, key_dim=64, value_dim=64, codes=False, latent=False, slopes=None):
        self.plain = Paged(7, dtype, rows, kv_heads=kv_heads, key_dim=key_dim, value_dim=value_dim)
        self.q = numbers(8, (self.plain.tokens, heads, key_dim), dtype)
        self.latent, self.codes, self.slopes = latent, codes, slopes
        held = np.int8 if codes else dtype
        blocks, _, block_tokens, _ = self.plain.k_cache.shape
        self.k = np.full((blocks, kv_heads, block_tokens, key_dim), 99, held)
        self.v = None if latent else np.full((blocks, kv_heads, block_tokens, value_dim), 99, held)
        scale = np.full((blocks, kv_heads, block_tokens, 1), np.nan, np.float32)
        self.scales = (scale if codes else None, scale.copy() if codes and not latent else None)
        for row, (_, length) in enumerate(rows):
            positions = np.arange(length)
            slots = (self.plain.table[row, positions // block_tokens] * block_tokens + positions % block_tokens).astype(np.int32)
            values = None if latent else self.plain.values[row]
            native.write_kv(self.plain.keys[row], values, self.k, self.v, slots, *self.scales)
        self.value_dim = value_dim

    def run(self, starts=None, lengths=None, q=None):
        p = self.plain
        q = self.q if q is None else q
        out = np.empty((*q.shape[:2], self.value_dim), q.dtype)
        slopes = None if self.slopes is None else np.array(self.slopes, np.float32)
        native.attention(q, self.k, self.v, out, p.table, p.starts if starts is None else starts, p.lengths if lengths is None else lengths,
                         0.125, 0, 0.0, None, slopes, *self.scales)
        return out

    def expected(self, work=np.float64):
        """With `work` rounding keys, values and weights as a naive evaluation would."""
        def held(array):
            codes, scale = coded(array, "int8") if self.codes else (array, 1.0)
            return (codes.astype(np.float64) * scale).astype(work).astype(np.float64)

        p, group = self.plain, self.q.shape[1] // self.k.shape[1]
        out = np.zeros((*self.q.shape[:2], self.value_dim))
        for row, (start, stop) in enumerate(pairwise(p.starts)):
            keys = held(p.keys[row])
            values = keys[..., : self.value_dim] if self.latent else held(p.values[row])
            for token in range(start, stop):
                end = p.lengths[row] - (stop - token) + 1
                for head in range(self.q.shape[1]):
                    scores = keys[:end, head // group] @ self.q[token, head].astype(np.float64) * 0.125
                    if self.slopes is not None:
                        scores = scores + self.slopes[head] * np.arange(1 - end, 1)
                    scores = scores.astype(work).astype(np.float64)
                    weights = np.exp(scores - scores.max())
                    out[token, head] = (weights / weights.sum()).astype(work).astype(np.float64) @ values[:end, head // group]
        return out


ROWS = [(1, 1), (1, 200), (5, 5), (40, 130), (1, 1100)]
VARIANTS = {
    "codes": dict(codes=True),
    "codes-128": dict(codes=True, key_dim=128, value_dim=128),
    "codes-odd": dict(codes=True, key_dim=33, value_dim=21, kv_heads=1),
    "latent": dict(latent=True, kv_heads=1, heads=16, key_dim=96, value_dim=64),
    "latent-few-heads": dict(latent=True, kv_heads=1, heads=4, key_dim=96, value_dim=64),
    "latent-codes": dict(latent=True, codes=True, kv_heads=1, heads=4, key_dim=96, value_dim=64),
    "alibi": dict(slopes=tuple(2.0 ** -(head + 1) for head in range(8))),
    "alibi-codes": dict(codes=True, slopes=(0.5, 0.0, -0.01, 0.1, 0.25, 1.0, 0.3, 0.7)),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param


def test_each_kind_of_cell_errs_no_more_than_twice_a_naive_evaluation(path, dtype, variant):
    made = Variant(dtype, rows=ROWS, **variant)
    expected = made.expected()
    error, usual = (np.abs(found.astype(np.float64) - expected) for found in (made.run(), made.expected(dtype)))
    floor = np.abs(expected).max() * float(2.0 ** -(9 if dtype == BF16 else 11 if dtype == np.float16 else 18))
    assert error.max() <= max(2 * usual.max(), floor)
    assert np.sqrt(np.mean(error**2)) <= max(2 * np.sqrt(np.mean(usual**2)), floor)


def test_each_kind_of_cell_gives_a_query_the_same_bits_in_any_batch(path, dtype, variant):
    made = Variant(dtype, rows=[(1100, 1100)], **variant)
    whole = made.run()
    for position in (0, 63, 64, 500, 1023, 1024, 1099):
        starts, lengths = np.array([0, 1], np.int32), np.array([position + 1], np.int32)
        one = made.run(starts, lengths, np.ascontiguousarray(made.q[position : position + 1]))
        np.testing.assert_array_equal(bits(one), bits(whole[position : position + 1]), err_msg=f"at {position}")


def test_codes_and_scales_are_those_of_the_definition(dtype):
    k = numbers(9, (6, 3, 40), dtype, 3.0)
    k[1, 0, 5], k[2, 1, 0], k[3, 2] = np.nan, np.inf, 0
    cells, scales = np.zeros((3, 3, 4, 40), np.int8), np.zeros((3, 3, 4, 1), np.float32)
    slots = np.arange(4, 10, dtype=np.int32)
    native.write_kv(k, None, cells, None, slots, scales, None)
    codes, wanted = coded(k, "int8")
    np.testing.assert_array_equal(cells[slots // 4, :, slots % 4], codes)
    np.testing.assert_array_equal(scales[slots // 4, :, slots % 4], wanted)


def test_a_nan_scale_reaches_only_the_queries_that_see_it(path, dtype):
    made = Variant(dtype, rows=[(100, 100)], codes=True)
    clean = made.run()
    made.scales[1][made.plain.table[0, 50 // 16], :, 50 % 16] = np.nan
    out = made.run()
    np.testing.assert_array_equal(bits(out[:50]), bits(clean[:50]))
    assert np.isnan(out[50:].astype(np.float32)).all()


def test_cells_of_codes_need_their_scales():
    made = Variant(np.dtype(np.float32), rows=[(1, 3)], codes=True)
    made.scales = (None, None)
    with pytest.raises(ValueError, match="int8.*expected float32"):
        made.run()
