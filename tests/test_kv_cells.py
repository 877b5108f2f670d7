"""Cells of codes and of latent keys: what is written, how it is read back, and which arrays it takes."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from inferplane.ops import DTYPES, Attention, Dim, GroupRows, QkvRopeWrite, Rope, StateArray, WriteKV
from inferplane.ops.attention import KV_SCHEMES, coded

Array = np.ndarray[Any, Any]

WRITE = WriteKV(kv_heads=Dim(3, "kv_heads"), key_dim=8, value_dim=5, dtype="float32")
ATTENTION = Attention(heads=Dim(6), kv_heads=Dim(3), key_dim=8, value_dim=5, scale=0.5, dtype="float32")
LATENT = {"latent": True, "kv_heads": Dim(1)}
BATCH = SimpleNamespace(starts=np.array([0, 3]), lengths=np.array([3]), positions=np.arange(3),
                        groups=(GroupRows(np.array([[2, 1]], np.int32), np.array([4, 5, 2], np.int32)),))
"""One row of three tokens, in blocks of two: the first two in block 2, the third in block 1."""

kv_dtypes = pytest.mark.parametrize("kv_dtype", KV_SCHEMES)


def cell(write: WriteKV) -> Any:
    return SimpleNamespace(group=0, **{
        name: np.zeros((3, array.heads, 2, array.dim), DTYPES[array.dtype]) for name, array in write.arrays.items()})


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_cell_of_codes_has_a_scale_for_each_token_and_head() -> None:
    assert replace(WRITE, kv_dtype="int8").arrays == {
        "k": StateArray(3, 8, "int8"), "v": StateArray(3, 5, "int8"),
        "k_scale": StateArray(3, 1, "float32"), "v_scale": StateArray(3, 1, "float32"),
    }


def test_a_latent_cell_has_keys_alone() -> None:
    assert replace(WRITE, latent=True).arrays == {"k": StateArray(3, 8, "float32")}
    assert set(replace(WRITE, latent=True, kv_dtype="int8").arrays) == {"k", "k_scale"}


def test_an_int8_row_reaches_from_its_largest_magnitude_to_127() -> None:
    codes, scales = coded(np.array([[0.5, -2.0, 1.0], [0.0, -0.0, 0.0]], np.float32), "int8")
    assert codes.tolist() == [[32, -127, 64], [0, 0, 0]]
    assert scales.tolist() == [[np.float32(2) / np.float32(127)], [0.0]]


@kv_dtypes
@pytest.mark.parametrize("strange", [np.inf, -np.inf, np.nan], ids=str)
def test_a_row_with_an_infinity_or_nan_has_codes_of_zero_bits_and_the_scale_nan(kv_dtype: str, strange: float) -> None:
    codes, scales = coded(np.array([[-1.0, strange], [1.0, 0.5]], np.float32), kv_dtype)
    assert codes.view(np.uint8)[0].tolist() == [0, 0]
    assert np.isnan(scales).tolist() == [[True], [False]]


@kv_dtypes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_comes_back_within_half_a_step(kv_dtype: str, dtype: str) -> None:
    spec = replace(WRITE, kv_dtype=kv_dtype, dtype=dtype)
    held, k, v = cell(spec), normal(3, 3, 8).astype(DTYPES[dtype]), normal(3, 3, 5).astype(DTYPES[dtype])
    spec.reference(k, v, held, BATCH)
    keys, values = replace(ATTENTION, kv_dtype=kv_dtype).gathered(held, BATCH.groups[0].table[0], 0, 3)
    for given, found in ((k, keys), (v, values)):
        given = given.astype(np.float64).transpose(1, 0, 2)
        step = np.abs(given).max(-1, keepdims=True) / 127 if kv_dtype == "int8" else np.maximum(np.abs(given) / 8, 2**-8)
        assert (np.abs(found - given) <= step * 0.5001).all()
        assert not np.array_equal(found, given)


@kv_dtypes
def test_attention_over_codes_is_attention_over_what_they_stand_for(kv_dtype: str) -> None:
    coded_write, coded_read = replace(WRITE, kv_dtype=kv_dtype), replace(ATTENTION, kv_dtype=kv_dtype)
    held, plain, q = cell(coded_write), cell(replace(WRITE, dtype="float64")), normal(3, 6, 8)
    coded_write.reference(normal(3, 3, 8), normal(3, 3, 5), held, BATCH)
    for name in ("k", "v"):
        getattr(plain, name)[...] = getattr(held, name).astype(np.float64) * getattr(held, f"{name}_scale")
    assert np.array_equal(coded_read.reference(q, held, BATCH), ATTENTION.reference(q, plain, BATCH))
    assert np.array_equal(coded_read.magnitude(q, held, BATCH), ATTENTION.magnitude(q, plain, BATCH))


@pytest.mark.parametrize("kv_dtype", [None, *KV_SCHEMES], ids=str)
def test_latent_attention_mixes_the_first_entries_of_the_keys(kv_dtype: str | None) -> None:
    write, read = replace(WRITE, kv_dtype=kv_dtype, **LATENT), replace(ATTENTION, kv_dtype=kv_dtype, **LATENT)
    held, q = cell(write), normal(3, 6, 8)
    write.reference(normal(3, 1, 8), None, held, BATCH)
    split = SimpleNamespace(**{**vars(held), "v": held.k[..., :5].copy(), "v_scale": getattr(held, "k_scale", None)})
    assert np.array_equal(read.reference(q, held, BATCH), replace(read, latent=False).reference(q, split, BATCH))


@kv_dtypes
def test_the_codes_of_a_fused_write_are_those_of_the_key_rotated_in_its_dtype(kv_dtype: str) -> None:
    rope = Rope(heads=Dim(3), head_dim=8, frequencies=(1.0, 0.1), dtype="bfloat16")
    write = replace(WRITE, dtype="bfloat16", kv_dtype=kv_dtype)
    fused, apart = cell(write), cell(write)
    k, v = normal(3, 3, 8).astype(ml_dtypes.bfloat16), normal(3, 3, 5).astype(ml_dtypes.bfloat16)
    QkvRopeWrite(query=rope, key=rope, write=write).reference(k, k, v, fused, BATCH)
    write.reference(rope.reference(k, BATCH).astype(ml_dtypes.bfloat16), v, apart, BATCH)
    assert all(np.array_equal(getattr(fused, name), getattr(apart, name)) for name in write.arrays)


def test_alibi_favours_the_near_keys() -> None:
    """With equal keys the weights fall by the slope from key to key, whatever the scale and the softcap."""
    spec = Attention(heads=Dim(1), kv_heads=Dim(1), key_dim=8, value_dim=5, scale=7.0, softcap=3.0, dtype="float64", alibi=(np.log(2),))
    held = SimpleNamespace(group=0, k=np.ones((3, 1, 2, 8)), v=np.zeros((3, 1, 2, 5)))
    held.v[2, :, 0] = 1
    assert spec.reference(np.ones((3, 1, 8)), held, BATCH)[:, 0, 0].tolist() == pytest.approx([1, 1 / 3, 1 / 7])
