"""Platforms whose arrays are torch tensors: every op in plain torch, state, canonical blocks, and the base to subclass.

Importing this package imports no torch, so that a platform's `probe` can say that torch is missing.
"""
from .platform import TorchPlatform

__all__ = ["TorchPlatform"]
