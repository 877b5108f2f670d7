"""The compiled kernels, or why they are not there."""
from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
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


def layout() -> str:
    """What packed weights depend on: another build may pack otherwise, and so may another instruction set."""
    return f"{_build_id()} {NATIVE.features()['path']}" if NATIVE is not None else ""


@cache
def _build_id() -> str:
    return sha256(Path(NATIVE.__file__).read_bytes()).hexdigest()[:16]
