"""Inferplane: one LLM inference engine for every accelerator."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core.async_engine import AsyncEngine
    from .core.llm import LLM
    from .core.request import SamplingParams
    from .core.structured import StructuredOutputs
    from .errors import InferplaneError

# Imported on first use: `import inferplane` and `inferplane --help` stay fast.
_HOMES = {
    "LLM": ".core.llm",
    "AsyncEngine": ".core.async_engine",
    "SamplingParams": ".core.request",
    "StructuredOutputs": ".core.structured",
    "InferplaneError": ".errors",
    "errors": ".errors",
}

__all__ = ["AsyncEngine", "InferplaneError", "LLM", "SamplingParams", "StructuredOutputs", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name], __name__)
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
