"""Values as codes with a scale for each group of them: to the bit what ops/quantize.py says."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ....ops import DTYPES
from ....ops.quantize import ACTIVATIONS
from .rows import F32


def coded(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """x [..., group] -> codes in its shape and scales [..., 1] float32. A group with an infinity or NaN: codes 0, scale NaN.

    Finite or not is asked of each value: on the CPU XLA's largest of many rows forgets a NaN. The barriers keep XLA from turning a
    division by a constant into a product with its inverse, which rounds otherwise, and from cutting a way through 8 bits short.
    """
    x, limit = x.astype(F32), jax.lax.optimization_barrier(jnp.asarray(ACTIVATIONS[dtype], F32))
    largest = jnp.abs(x).max(-1, keepdims=True)
    finite = jnp.isfinite(x).all(-1, keepdims=True)
    inverse = jnp.where(largest > 0, limit / largest, 0)
    codes = jnp.where(finite, x * jnp.where(jnp.isfinite(inverse), inverse, 0), 0)
    scales = jnp.where(finite, largest / limit, jnp.nan)
    codes = jnp.round(codes) if dtype == "int8" else codes
    return jax.lax.optimization_barrier(codes.astype(DTYPES[dtype])), scales


def gathered(cell: Any, name: str, blocks: jax.Array, kv_dtype: str | None) -> jax.Array:
    """[tiles, columns] block ids -> [tiles, kv_heads, columns * block_tokens, dim]; codes are decoded, to float32."""
    found = getattr(cell, name)[blocks].swapaxes(1, 2)
    found = found.reshape(*found.shape[:2], -1, found.shape[-1])
    return found if kv_dtype is None else found.astype(F32) * gathered(cell, f"{name}_scale", blocks, None)
