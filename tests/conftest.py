"""Fixtures that several test files share."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _sibling(name: str) -> ModuleType:
    """tests/ is no package: a module beside this file is loaded by its path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"inferplane_tests_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """tests/checkpoints.py: small random checkpoints, written by transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return _sibling("checkpoints")
