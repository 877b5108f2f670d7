"""The formats that are installed: by name, and by the marks that a chat template has."""
from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from stevedore import ExtensionManager

from ...errors import ConfigError, suggest
from .format import Format

GROUP = "inferplane.tool_formats"


@cache
def formats() -> dict[str, Format]:
    """Those of this package, and of others that are installed."""
    found: Iterable[Any] = ExtensionManager(GROUP)
    return {extension.name: extension.plugin() for extension in found}


def format_named(name: str) -> Format:
    """Raises `ConfigError`."""
    known = formats()
    if name not in known:
        raise ConfigError(f"there is no tool format {name!r}. {suggest(name, known)}")
    return known[name]


def format_of(templates: Iterable[str]) -> Format | None:
    """The one with the earliest mark in a chat template; None: no template has a mark of any."""
    found = [
        (text.index(mark), family.name, family)
        for text in templates for family in formats().values() for mark in family.marks if mark in text
    ]
    return min(found, key=lambda one: one[:2])[2] if found else None
