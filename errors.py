"""The one tree of errors. Each message says what was asked, what was found, and what to do.

InferplaneError
|-- ConfigError            a setting, an argument or an environment variable
|-- PlatformError
|   |-- PlatformNotFound       no plugin of that name
|   |-- PlatformUnavailable    known, but this machine or this install cannot run it
|   `-- PlatformLoadError      the plugin's own code failed, or speaks another contract
|-- SpecError              an op was described or called wrongly; raised while tracing
|-- ResolutionError        no kernel, or not the one asked for, meets a spec
|-- ModelError
|   |-- ModelNotFound          no such folder, hub name or model_type
|   `-- CheckpointError        a damaged, incomplete or mismatched checkpoint
|-- RequestError           one request is wrong; others go on
|   `-- PromptTooLong
|-- CapacityError          it is right, but does not fit
|-- ExchangeError          canonical blocks that must not be imported
`-- EngineError            the engine is closed, or a step failed
"""
from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InferplaneError(Exception):
    """The root: `except InferplaneError` catches whatever this package raises on purpose."""


class ConfigError(InferplaneError, ValueError):
    """A setting, an argument or an environment variable that cannot be used."""


class PlatformError(InferplaneError):
    """A platform cannot be used."""


class PlatformNotFound(PlatformError):
    """No plugin of that name is installed."""


class PlatformUnavailable(PlatformError):
    """The plugin is installed, and its probe says that it cannot run here."""


class PlatformLoadError(PlatformError):
    """The plugin's own code failed while loading, or it speaks another contract version."""


class SpecError(InferplaneError, ValueError):
    """An op was described or called wrongly (a shape, a dtype, a size)."""


class ResolutionError(InferplaneError):
    """No kernel meets a spec, or the kernel that was asked for does not."""


class ModelError(InferplaneError):
    """A model cannot be loaded."""


class ModelNotFound(ModelError):
    """No such folder, no such hub name, or a model_type nobody registered."""


class CheckpointError(ModelError):
    """A checkpoint is damaged, incomplete, or does not match its config."""


class RequestError(InferplaneError, ValueError):
    """One request is wrong. No other request is touched."""


class PromptTooLong(RequestError):
    """The prompt and the tokens asked for exceed the model's context."""


class CapacityError(InferplaneError):
    """A valid request or pool that does not fit into the memory at hand."""


class ExchangeError(InferplaneError):
    """Canonical blocks with a wrong manifest, checksum, or model."""


class EngineError(InferplaneError):
    """The engine is closed, or a step failed."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known name, and all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."
