"""Each case as a test. An unsupported case passes with its reason in the captured output; nothing is skipped.

Imports are absolute: pytest may name this module after its folder.
"""
from __future__ import annotations

import pytest
from inferplane.conformance.case import GOOD, Case
from inferplane.conformance.cases import all_cases
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import replay, run_here
from inferplane.conformance.xfail import Excuse, stale


def test_every_excuse_is_for_a_case(known_failures: dict[str, Excuse]) -> None:
    assert not stale(known_failures, (case.id for case in all_cases())), "stale entries in xfail.toml; remove them"


def test_case(case: Case, conformance_rig: Rig, known_failures: dict[str, Excuse], pytestconfig: pytest.Config) -> None:
    [result] = run_here(conformance_rig, [case], known_failures)
    print(f"{result.verdict}: {result.detail}")
    assert result.verdict in GOOD, f"{result.detail}\n{replay(pytestconfig.getoption('--platform'), case.id)}"
