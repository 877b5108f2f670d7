"""qkv_rope_write in Triton does to the bit what rope and write_kv do one after the other, in every form of a cell."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from inferplane.ops import BatchShape, Dim, QkvRopeWrite, Rope, StateGroup, WriteKV, empty, unpack  # noqa: E402
from inferplane.platforms.families.torch.arrays import TORCH, host, tensor  # noqa: E402
from inferplane.platforms.families.triton import cells, interpreted  # noqa: E402
from inferplane.platforms.families.triton.device import Device  # noqa: E402
from inferplane.platforms.families.triton.state import TritonState  # noqa: E402
from inferplane.platforms.families.triton.target import interpreted as interpreted_target  # noqa: E402

DEVICE = Device(torch.device("cpu"), interpreted_target("amd"), interpreted.start)
TOKENS, HEADS, KV_HEADS, BLOCKS, BLOCK_TOKENS = 19, 5, 3, 4, 8


def rope(heads: int, dim: int, turned: int, interleaved: bool, dtype: str) -> Rope:
    frequencies = tuple(500.0 ** (-j / turned) for j in range(turned))
    return Rope(heads=Dim(heads), head_dim=dim, frequencies=frequencies, dtype=dtype, scale=1.25, interleaved=interleaved)


def step() -> tuple[Any, Any]:
    """(staged, on the host): tokens at scattered slots of blocks 1 to 3, positions far apart."""
    random = np.random.default_rng(2)
    packed, batch, _ = empty(BatchShape(TOKENS, 1, 1, (BLOCKS,), TOKENS))
    batch.groups[0].slots[:] = BLOCK_TOKENS + random.permutation(3 * BLOCK_TOKENS)[:TOKENS]
    batch.positions[:] = random.integers(0, 200_000, TOKENS)
    return unpack(packed.shape, tensor(packed.integers), tensor(packed.floats))[0], batch


def state_of(write: WriteKV) -> TritonState:
    return TritonState(DEVICE, [StateGroup("full", (0,), write.arrays, block_tokens=BLOCK_TOKENS)], [BLOCKS], 1)


@pytest.mark.parametrize("kv_dtype", [None, "int8", "float8_e4m3fn"], ids=["floats", "int8", "fp8"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("dim", "turned", "value_dim"), [(16, 8, 16), (24, 6, 10), (7, 2, 7)], ids=["whole", "part", "odd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_in_one_pass_are_one_after_the_other(dtype: str, dim: int, turned: int, value_dim: int, interleaved: bool,
                                                  kv_dtype: str | None) -> None:
    write = WriteKV(kv_heads=Dim(KV_HEADS), key_dim=dim, value_dim=value_dim, dtype=dtype, kv_dtype=kv_dtype)
    turn_q, turn_k = (rope(heads, dim, turned, interleaved, dtype) for heads in (HEADS, KV_HEADS))
    sizes = [HEADS * dim, KV_HEADS * dim, KV_HEADS * value_dim]
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(TOKENS, sum(sizes), generator=generator).to(TORCH[dtype]).split(sizes, dim=-1)
    q, k, v = q.unflatten(1, (HEADS, dim)), k.unflatten(1, (KV_HEADS, dim)), v.unflatten(1, (KV_HEADS, value_dim))
    staged, _ = step()
    together, apart = state_of(write), state_of(write)
    made = cells.qkv_rope_write(DEVICE, QkvRopeWrite(query=turn_q, key=turn_k, write=write), q, k, v, together[0], staged)
    cells.write_kv(DEVICE, write, cells.rope(DEVICE, turn_k, k, staged), v, apart[0], staged)
    assert torch.equal(made, cells.rope(DEVICE, turn_q, q, staged))
    one, other = together.read(0, range(BLOCKS)), apart.read(0, range(BLOCKS))
    assert one.keys() == write.arrays.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert any(array.view(np.uint8).any() for array in one.values())


def test_keys_are_those_of_the_definition() -> None:
    write = WriteKV(kv_heads=Dim(KV_HEADS), key_dim=16, value_dim=16, dtype="float32")
    turn_q, turn_k = (rope(heads, 16, 4, False, "float32") for heads in (HEADS, KV_HEADS))
    q, k, v = (torch.randn(TOKENS, heads, 16) for heads in (HEADS, KV_HEADS, KV_HEADS))
    staged, batch = step()
    state = state_of(write)
    made = cells.qkv_rope_write(DEVICE, QkvRopeWrite(query=turn_q, key=turn_k, write=write), q, k, v, state[0], staged)
    block, offset = np.divmod(np.asarray(batch.groups[0].slots), BLOCK_TOKENS)
    assert np.allclose(host(made), turn_q.reference(host(q), batch), atol=1e-5)
    assert np.allclose(host(state[0].k)[block, :, offset], turn_k.reference(host(k), batch), atol=1e-5)
    assert np.array_equal(host(state[0].v)[block, :, offset], host(v))


def test_queries_and_keys_that_turn_differently_are_left_to_another_kernel() -> None:
    write = WriteKV(kv_heads=Dim(KV_HEADS), key_dim=16, value_dim=16, dtype="float32")
    spec = QkvRopeWrite(query=rope(HEADS, 16, 8, False, "float32"), key=rope(KV_HEADS, 16, 4, False, "float32"), write=write)
    [fused] = [kernel for kernel in cells.kernels(DEVICE) if kernel.op == "qkv_rope_write"]
    assert fused.supports(spec) == "queries and keys turn differently"


def test_rows_with_an_infinity_have_no_codes_and_no_scale() -> None:
    write = WriteKV(kv_heads=Dim(1), key_dim=8, value_dim=8, dtype="float32", kv_dtype="int8")
    staged, batch = step()
    k = torch.ones(TOKENS, 1, 8)
    k[3, 0, 5] = torch.inf
    state = state_of(write)
    cells.write_kv(DEVICE, write, k, k, state[0], staged)
    block, offset = divmod(int(batch.groups[0].slots[3]), BLOCK_TOKENS)
    assert torch.isnan(state[0].k_scale[block, 0, offset]).all()
    assert not state[0].k[block, 0, offset].any()
