"""Platforms whose arrays are NumPy's: state, canonical blocks, asynchronous steps, and the reference kernels."""
from .kernels import reference_kernels
from .platform import HostPlatform
from .state import Cell, HostState

__all__ = ["Cell", "HostPlatform", "HostState", "reference_kernels"]
