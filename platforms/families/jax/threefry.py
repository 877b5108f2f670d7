"""Threefry-2x32-20 and its uniforms, equal to ops/threefry.py to the bit; rolled up, for XLA is slow to compile it unrolled."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ....ops.threefry import PARITY, ROTATIONS

Words = tuple[jax.Array, jax.Array]


def threefry(key: Words, counter: Words) -> Words:
    """Two words of random bits for each broadcast (key, counter); int32 is read as 32 bits."""
    key0, key1, x0, x1 = (word.astype(jnp.uint32) for word in (*key, *counter))
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(PARITY))

    def four_rounds(group: jax.Array, carry: tuple[Words, tuple[jax.Array, ...], tuple[jax.Array, ...]]) -> Any:
        (x0, x1), (now, then, later), (rotations, others) = carry
        for rotation in rotations:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x1 = x1 + later + group.astype(jnp.uint32) + jnp.uint32(1)
        return (x0 + then, x1), (then, later, now), (others, rotations)

    x0, x1 = jnp.broadcast_arrays(x0 + keys[0], x1 + keys[1])
    made: Words = jax.lax.fori_loop(0, 5, four_rounds, ((x0, x1), keys, tuple(jnp.array(r, jnp.uint32) for r in ROTATIONS)))[0]
    return made


def uniforms(seed_low: jax.Array, seed_high: jax.Array, index: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    """[samples, vocab] float32, from [samples] of each argument: one number per token id, tokens 2i and 2i + 1 of counter i."""
    low, high = threefry((seed_low, seed_high), (index, position))
    pairs = jnp.arange((vocab + 1) // 2, dtype=jnp.uint32)
    bits = threefry((low[:, None], high[:, None]), (pairs[None, :], jnp.zeros_like(pairs)))
    mixed = jnp.stack(bits, axis=-1).reshape(low.shape[0], -1)[:, :vocab]
    return ((mixed >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
