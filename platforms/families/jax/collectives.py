"""Sums and gathered parts over a mesh, inside the one program that all its devices run."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from .devices import AXIS


class MeshCollectives:
    """XLA adds up in an order of its own, the same on every device and in every run of a program."""

    def all_reduce(self, array: jax.Array, dtype: str) -> jax.Array:
        return jax.lax.psum(array.astype(jnp.float32), AXIS).astype(dtype)

    def all_gather(self, array: jax.Array) -> jax.Array:
        return jax.lax.all_gather(array, AXIS, axis=array.ndim - 1, tiled=True)

    def abort(self) -> None:
        """Nobody waits: the devices are one process's."""

    def close(self) -> None:
        """There is nothing to release."""
