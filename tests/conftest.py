"""What test files share: fixtures, a hypothesis profile with a budget, and a budget for the whole run."""
from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from inferplane import AsyncEngine

BUDGET_SECONDS = 30 * 60
"""A run of every test, on two cores. What grows past it is a defect like any other."""

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", max_examples=30, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
_STARTED = pytest.StashKey[float]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_STARTED] = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _seconds(session.config) > BUDGET_SECONDS and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seconds = _seconds(config)
    verdict = "over" if seconds > BUDGET_SECONDS else "within"
    terminalreporter.write_line(f"{seconds:.0f} s, {verdict} the budget of {BUDGET_SECONDS} s")


def _seconds(config: pytest.Config) -> float:
    return time.monotonic() - config.stash[_STARTED]


def _sibling(name: str) -> ModuleType:
    """tests/ is no package: a module beside this file is loaded by its path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"inferplane_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """tests/checkpoints.py: small random checkpoints, written by transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return _sibling("checkpoints")


@pytest.fixture(scope="session")
def small_models() -> ModuleType:
    """tests/small_models.py: small random models and engines over them."""
    return _sibling("small_models")


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """tests/serving.py: the server in this process and in one of its own, and clients for both."""
    pytest.importorskip("openai")
    pytest.importorskip("starlette")
    return _sibling("serving")


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    """The embedded model on the cpu, for a file that does not make its own."""
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(serving: ModuleType, engine: AsyncEngine) -> Any:
    """The server in this process, as it comes."""
    return serving.App(engine)


@pytest.fixture
def nothing_leaks(engine: AsyncEngine) -> Iterator[None]:
    """Afterwards nobody is inside, and no block is held but the null one."""
    yield
    stats = engine.stats()
    assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0})


@pytest.fixture(scope="session")
def browsing() -> ModuleType:
    """tests/browser.py: a headless Chromium."""
    made = _sibling("browser")
    if made.CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome")
    return made


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """tests/devices.py, installed as a package's platform: worker processes import it, too."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("devices")
    source = Path(__file__).with_name("devices.py").read_text()
    entry = "torch-cpu = inferplane_devices:TorchCpu"
    _sibling("small_models").install(folder, "inferplane_devices", "inferplane.platforms", entry, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("inferplane_devices")
