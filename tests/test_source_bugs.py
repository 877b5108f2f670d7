"""Bugs in the sources of kernels: the suite's cases kill them under the interpreter, and a right source stays as it was."""
from __future__ import annotations

import pytest
from inferplane.conformance import selftest as tested
from inferplane.conformance.case import GOOD
from inferplane.conformance.cases import find
from inferplane.conformance.mutants import SOURCE_BUGS, SourceBug
from inferplane.conformance.mutants.source import killers, planted
from inferplane.conformance.rig import Rig
from inferplane.platforms import registry

pytest.importorskip("torch")
pytest.importorskip("triton")

SAMPLED = [bug for bug in SOURCE_BUGS if bug.name in killers()][::8]
"""`inferplane conformance selftest --quick --platform cuda:interpreted` has all of them."""


@pytest.fixture(scope="module")
def oracle() -> tested.Remembering:
    return tested.Remembering()


@pytest.mark.parametrize("bug", SAMPLED, ids=lambda bug: bug.name)
def test_a_bug_in_a_source_dies_of_a_case_that_the_right_source_passes(bug: SourceBug, oracle: tested.Remembering) -> None:
    case = find(killers()[bug.name])
    found = tested.try_out(bug.variant(), [case], oracle)
    assert found.case == case.id
    passed = case.run(Rig(registry.named(bug.platform), oracle))
    assert passed.verdict in GOOD, passed.detail


def test_what_was_planted_is_gone_afterwards_also_from_modules_that_were_imported_meanwhile() -> None:
    from inferplane.platforms.families.triton import attention, attention_kernel

    [bug] = [bug for bug in SOURCE_BUGS if bug.name == "attention.triton_sees_the_next_key"]
    right = attention_kernel.attention_kernel
    with planted(bug):
        assert attention.attention_kernel is not right
    assert attention.attention_kernel is attention_kernel.attention_kernel is right


def test_a_platform_is_tried_with_nothing_planted_on_the_cases_that_killed_its_bugs() -> None:
    report = tested.selftest(True, ["add_rms_norm.triton_total"], platform="cuda:interpreted")
    [killed], [untouched] = report.bugs, report.legal
    assert (untouched.name, untouched.case, untouched.tried) == ("nothing.planted_on_cuda", None, 1)
    assert killed.case is not None and report.sound
