"""Platforms whose arrays are JAX's: every op in jax.numpy with static shapes, functional state, and the base to subclass.

Importing this package imports no JAX, so that a platform's `probe` can say that JAX is missing.
"""
from .platform import BUCKETS, JaxPlatform

__all__ = ["BUCKETS", "JaxPlatform"]
