"""Pallas kernels compiled by Mosaic for TPUs that are not there."""
from __future__ import annotations

import os
from typing import Any

import pytest
from inferplane.ops import DTYPES, Attention, BatchShape, Dim, Linear, Moe, Scheme, empty, unpack

jax = pytest.importorskip("jax")
pytest.importorskip("libtpu")

import jax.numpy as jnp  # noqa: E402
from inferplane.platforms.families.jax.state import Cell  # noqa: E402
from inferplane.platforms.families.pallas import attention, experts, quantized  # noqa: E402
from inferplane.platforms.families.pallas.calls import Calls  # noqa: E402
from jax.experimental import topologies  # noqa: E402

CALLS = Calls(interpret=False)
CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
TOKENS_CHIPS = (*((8, chip) for chip in CHIPS), (512, "v5e:2x2"))
DECODE, PREFILL = BatchShape(64, 64, 64, (256,), 1), BatchShape(512, 8, 8, (64,), 512)


def compiled(chip: str, function: Any, *arguments: Any) -> tuple[str, Any]:
    """(what is given to the compiler, as text; what it makes of that)."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    sharding = jax.sharding.SingleDeviceSharding(topologies.get_topology_desc(chip, platform="tpu").devices[0])
    placed = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding), arguments)
    lowered = jax.jit(function).lower(*placed)
    return lowered.as_text(), lowered.compile()


def array(dtype: str, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, DTYPES[dtype])


def attention_of(heads: int, kv_heads: int, key_dim: int, value_dim: int, **given: Any) -> Attention:
    sizes = dict(heads=Dim(heads), kv_heads=Dim(kv_heads), key_dim=key_dim, value_dim=value_dim)
    return Attention(**{**sizes, "scale": 0.1, "dtype": "bfloat16", **given})


ATTENTION = {
    "llama": attention_of(32, 8, 128, 128), "gemma": attention_of(16, 8, 256, 256, window=512, softcap=50.0),
    "gpt-oss": attention_of(64, 8, 64, 64, window=128, sinks=True), "phi": attention_of(32, 32, 96, 96),
    "deepseek": attention_of(16, 1, 576, 512, latent=True), "int8": attention_of(32, 8, 128, 128, kv_dtype="int8"),
    "fp8": attention_of(32, 8, 128, 128, kv_dtype="float8_e4m3fn"),
    "float32": attention_of(4, 2, 80, 80, dtype="float32", alibi=(0.1, 0.2, 0.3, 0.4)),
}


@pytest.mark.parametrize(("shape", "chip"), [*((DECODE, chip) for chip in CHIPS), (PREFILL, "v5e:2x2")],
                         ids=[*(f"decode-{chip}" for chip in CHIPS), "prefill-v5e:2x2"])
@pytest.mark.parametrize("spec", ATTENTION.values(), ids=ATTENTION)
def test_attention_compiles_for_the_chip(spec: Attention, shape: BatchShape, chip: str) -> None:
    held = spec.kv_dtype or spec.dtype
    cell = {"k": array(held, 1000, spec.kv_heads.size, 16, spec.key_dim)}
    cell |= {} if spec.latent else {"v": array(held, 1000, spec.kv_heads.size, 16, spec.value_dim)}
    cell |= {f"{name}_scale": array("float32", 1000, spec.kv_heads.size, 16, 1) for name in cell} if spec.kv_dtype else {}
    packed, _, _ = empty(shape)

    def step(q: Any, cell: Any, integers: Any, floats: Any, sinks: Any) -> Any:
        return attention.attention(CALLS, spec, q, Cell(0, cell), unpack(shape, integers, floats)[0], sinks)

    sinks = [array("float32", spec.heads.size)] if spec.sinks else None
    q = array(spec.dtype, shape.tokens, spec.heads.size, spec.key_dim)
    text, _ = compiled(chip, step, q, cell, packed.integers, packed.floats, sinks)
    assert "tpu_custom_call" in text


def test_a_cache_of_whole_tiles_is_read_where_it_lies() -> None:
    """A layout that differs from what XLA keeps would cost a copy of the whole cache in each step."""
    spec, (packed, _, _) = ATTENTION["llama"], empty(DECODE)
    cell = {name: array("bfloat16", 1000, 8, 16, 128) for name in "kv"}

    def step(q: Any, cell: Any, integers: Any, floats: Any) -> Any:
        return attention.attention(CALLS, spec, q, Cell(0, cell), unpack(DECODE, integers, floats)[0])

    _, made = compiled("v5e:2x2", step, array("bfloat16", 64, 32, 128), cell, packed.integers, packed.floats)
    assert not [line for line in made.as_text().splitlines() if " copy(" in line and "bf16[1000," in line]


SCHEMES = ("int8", "int8:a8", "int4:g128:float16", "int4:g32:zeros:a8g32", "float8_e4m3fn:g128:r128:af8g128", "float8_e4m3fn:af8")


@pytest.mark.parametrize(("tokens", "chip"), TOKENS_CHIPS, ids=[f"{tokens}-{chip}" for tokens, chip in TOKENS_CHIPS])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_products_compile_for_the_chip(scheme: str, tokens: int, chip: str) -> None:
    spec = Linear(input=Dim(4096), outputs=(Dim(4096), Dim(1024)), dtype="bfloat16", scheme=Scheme.parse(scheme))
    laid, int4 = quantized.layout(spec), scheme.startswith("int4")
    scales = array("float32", 1 if laid.whole else laid.segments, 1, 5120)
    codes = array("int8" if int4 else spec.scheme.weight, laid.segments // (2 if int4 else 1), laid.filled, 5120)  # type: ignore[union-attr]
    weight = quantized.Packed(codes, scales, scales if "zeros" in scheme else None, None)
    text, _ = compiled(chip, lambda x, weight: quantized.linear(CALLS, spec, x, weight, None), array("bfloat16", tokens, 4096), weight)
    assert "tpu_custom_call" in text


@pytest.mark.parametrize(("tokens", "chip"), TOKENS_CHIPS, ids=[f"{tokens}-{chip}" for tokens, chip in TOKENS_CHIPS])
def test_experts_compile_for_the_chip(tokens: int, chip: str) -> None:
    spec = Moe(experts=Dim(32), embed=2880, mlp=Dim(2880), top_k=4, activation="silu", dtype="bfloat16", bias=True, limit=7.0, alpha=1.702)
    weight = [array("bfloat16", 32, 2880, 2880)] * 3 + [array("bfloat16", 32, 1, 2880)] * 3
    given = array("bfloat16", tokens, 2880), jnp.zeros((tokens, 4), jnp.int32), array("float32", tokens, 4), weight
    assert "tpu_custom_call" in compiled(chip, lambda *given: experts.moe(CALLS, spec, *given, None), *given)[0]
