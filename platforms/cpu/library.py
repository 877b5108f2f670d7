"""The compiled kernels, or why they are not there."""
from __future__ import annotations

from importlib import import_module
from typing import Any

NATIVE: Any = None
_ERROR = ""
try:
    NATIVE = import_module(f"{__package__}._native")
except ImportError as error:
    _ERROR = str(error)


def missing_reason() -> str | None:
    """None where the library is there; otherwise what happened, and the remedy."""
    if NATIVE is not None:
        return None
    return f"the C++ kernels were not built ({_ERROR}); install a C++ compiler (g++) and install inferplane again"
