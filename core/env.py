"""The only reader of environment variables. A bad value, or a name that nobody knows, raises."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, suggest

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Environment:
    """What the variables INFERPLANE_* say.

    platform: a name with options after a colon, or "auto". cache: where downloads and compiled programs are kept.
    log: how much is told on stderr. config: a TOML file of settings. api_key: what the server asks clients for.
    """

    platform: str | None = None
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "inferplane")
    log: str = "warning"
    config: Path | None = None
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Environment:
        """Raises ConfigError for a value that cannot be used and for an unknown INFERPLANE_* name."""
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for variable in sorted(environ):
            if not variable.startswith("INFERPLANE_"):
                continue
            if variable not in _READERS:
                raise ConfigError(f"environment variable {variable} is unknown. {suggest(variable, _READERS)}")
            value = environ[variable].strip()
            if not value:
                raise ConfigError(f"environment variable {variable} is set but empty. Unset it, or give it a value.")
            found[variable.removeprefix("INFERPLANE_").lower()] = _READERS[variable](variable, value)
        return cls(**found)


def _text(_: str, value: str) -> str:
    return value


def _level(variable: str, value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise ConfigError(f"environment variable {variable} is {value!r}, no level. {suggest(value.lower(), LOG_LEVELS)}")
    return value.lower()


def _folder(variable: str, value: str) -> Path:
    path = Path(value).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"environment variable {variable} is {value!r}, a file. Give a folder, existing or to be made.")
    return path


def _file(variable: str, value: str) -> Path:
    path = Path(value).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"environment variable {variable} is {value!r}, which is no file. Give the path of a TOML file.")
    return path


_READERS: dict[str, Callable[[str, str], Any]] = {
    "INFERPLANE_PLATFORM": _text,
    "INFERPLANE_CACHE": _folder,
    "INFERPLANE_LOG": _level,
    "INFERPLANE_CONFIG": _file,
    "INFERPLANE_API_KEY": _text,
}
