"""Platforms whose arrays are NumPy's: state, canonical blocks, asynchronous steps, and the reference kernels."""
from .kernels import SCHEMES, reference_kernels
from .platform import HostPlatform
from .state import Cell, HostState

__all__ = ["SCHEMES", "Cell", "HostPlatform", "HostState", "reference_kernels"]
