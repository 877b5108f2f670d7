"""Platforms whose kernels are our own in Triton: one source for NVIDIA's and AMD's chips, on torch tensors.

Importing this package imports neither torch nor triton, so that a platform's `probe` can say that they are missing.
"""
from .platform import TritonPlatform

__all__ = ["TritonPlatform"]
