"""A platform package to start from: it installs, runs, and passes every case of the contract at once."""
from __future__ import annotations

import keyword
import re
from pathlib import Path

from ..errors import ConfigError
from ..platforms import registry

TEMPLATES = Path(__file__).resolve().parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def write_skeleton(name: str, folder: Path) -> Path:
    """The package `inferplane-NAME` in `folder`, which must be new or empty. Raises `ConfigError`."""
    _check(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; nothing was written. Name another folder with -o, or remove it.")
    for path, text in skeleton(name).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def skeleton(name: str) -> dict[str, str]:
    """Path in the package -> text."""
    package = f"inferplane_{name}"
    places = {
        "pyproject.toml": "pyproject.toml", "README.md": "README.md",
        f"{package}/__init__.py": "platform.py", f"{package}/kernels.py": "kernels.py", f"{package}/xfail.toml": "xfail.toml",
    }
    words = {"@name@": name, "@dashed@": name.replace("_", "-"), "@Class@": "".join(part.capitalize() for part in name.split("_"))}
    return {place: _filled((TEMPLATES / f"{template}.in").read_text(encoding="utf-8"), words) for place, template in places.items()}


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _check(name: str) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or name == registry.AUTO:
        raise ConfigError(
            f"a platform cannot be called {name!r}; use lower-case letters, digits and single underscores, such as 'acme' or 'acme_x2'"
        )
    if name in registry.names():
        raise ConfigError(f"a platform {name!r} is installed already. Choose another name, or uninstall that package.")
