"""The suite under pytest: `pytest --pyargs inferplane.conformance --platform acme [--conformance-quick] [--conformance-query Q]`."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .rig import Rig
    from .xfail import Excuse


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("inferplane conformance")
    group.addoption("--platform", help="the platform to prove, with options after a colon")
    group.addoption("--conformance-quick", action="store_true", help="a thin sample of every family")
    group.addoption("--conformance-profile", help="a frozen list of cases, such as core")
    group.addoption("--conformance-query", action="append", default=[], help="a prefix of addresses, or a pattern; may be repeated")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if Path(str(metafunc.module.__file__)).parent != Path(__file__).parent:
        return
    option = metafunc.config.getoption
    if not option("--platform"):
        raise pytest.Collector.CollectError("say which platform to prove: pytest --pyargs inferplane.conformance --platform NAME")
    if "case" in metafunc.fixturenames:
        from ..errors import ConfigError
        from .select import Selection

        try:
            cases = Selection(option("--conformance-profile"), option("--conformance-quick"), tuple(option("--conformance-query"))).cases()
        except ConfigError as error:
            raise pytest.Collector.CollectError(str(error)) from None
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])


@pytest.fixture(scope="session")
def conformance_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    from ..errors import InferplaneError
    from .runner import open_rig

    try:
        made = open_rig(request.config.getoption("--platform"))
    except InferplaneError as error:
        pytest.exit(str(error), returncode=4)
    yield made
    made.platform.close()


@pytest.fixture(scope="session")
def known_failures(conformance_rig: Rig) -> dict[str, Excuse]:
    from .xfail import excuses

    return excuses(type(conformance_rig.platform))
