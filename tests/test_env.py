"""Environment variables: five names, each checked when it is read."""
from __future__ import annotations

from pathlib import Path

import pytest
from inferplane.core.env import Environment
from inferplane.errors import ConfigError


def test_nothing_set_gives_the_defaults() -> None:
    environment = Environment.read({"PATH": "/bin"})
    assert (environment.platform, environment.log, environment.config, environment.api_key) == (None, "warning", None, None)
    assert environment.cache.is_absolute()


def test_every_variable_is_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.touch()
    environment = Environment.read({
        "INFERPLANE_PLATFORM": "cuda:1", "INFERPLANE_CACHE": str(tmp_path), "INFERPLANE_LOG": "Debug",
        "INFERPLANE_CONFIG": str(file), "INFERPLANE_API_KEY": "secret",
    })
    assert environment == Environment("cuda:1", tmp_path, "debug", file, "secret")


def test_the_process_environment_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLANE_PLATFORM", "reference")
    assert Environment.read().platform == "reference"


def test_an_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"INFERPLANE_PLATFROM is unknown\. Did you mean 'INFERPLANE_PLATFORM'\?"):
        Environment.read({"INFERPLANE_PLATFROM": "cpu"})


@pytest.mark.parametrize(("variable", "value", "said"), [
    pytest.param("INFERPLANE_PLATFORM", "  ", "set but empty", id="empty"),
    pytest.param("INFERPLANE_LOG", "loud", "no level.*debug, error, info, warning", id="level"),
    pytest.param("INFERPLANE_CACHE", __file__, "a file", id="cache-is-a-file"),
    pytest.param("INFERPLANE_CONFIG", "/no/such.toml", "which is no file", id="missing-config"),
])
def test_a_bad_value_raises_and_says_why(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}.*{said}"):
        Environment.read({variable: value})


def test_the_api_key_is_never_printed() -> None:
    assert "secret" not in repr(Environment.read({"INFERPLANE_API_KEY": "secret"}))
