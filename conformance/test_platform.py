"""Each case as a test. An unsupported case passes with its reason in the captured output; nothing is skipped.

Imports are absolute: pytest may name this module after its folder.
"""
from __future__ import annotations

from inferplane.conformance.case import GOOD, Case
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import run_here
from inferplane.conformance.xfail import Excuse


def test_case(case: Case, conformance_rig: Rig, known_failures: dict[str, Excuse]) -> None:
    [result] = run_here(conformance_rig, [case], known_failures)
    print(f"{result.verdict}: {result.detail}")
    assert result.verdict in GOOD, result.detail
