"""The compiled kernels, or why they are not there."""
from __future__ import annotations

from typing import Any

NATIVE: Any
try:
    from . import _native as NATIVE
    _ERROR = ""
except ImportError as error:
    NATIVE = None
    _ERROR = str(error)


def missing_reason() -> str | None:
    """None where the library is there; otherwise what happened, and the remedy."""
    if NATIVE is not None:
        return None
    return f"the C++ kernels were not built ({_ERROR}); install a C++ compiler (g++) and install inferplane again"
