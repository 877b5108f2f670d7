"""The suite proves itself: planted bugs die, legal variants live."""
from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from inferplane.conformance import selftest as tested
from inferplane.conformance.case import GOOD
from inferplane.conformance.cases import FAMILIES, quick_cases
from inferplane.conformance.mutants import BUGS, LEGAL, SOURCE_BUGS, MutantPlatform, SourceBug, Variant
from inferplane.conformance.mutants.source import ROOT, killers
from inferplane.conformance.rig import Rig
from inferplane.errors import ConfigError, PlatformUnavailable
from inferplane.platforms import registry
from rich.console import Console

OPS = sorted({variant.op for variant in BUGS})
KNOWN_BUGS = {
    "flash-attention #1745", "vLLM #53856", "flashinfer #3219", "aiter #3498", "vLLM #50276", "vLLM #47671", "flash-attention #2886",
    "vllm-plugin-FL #353", "vLLM #3385", "transformers #29623", "mlx-lm #390", "tenstorrent/vllm #415", "vLLM #45704", "LMCache #1856",
    "openvino.genai #3722", "vLLM #44701", "LMCache #1139", "triton #630", "triton #187", "sglang #39626", "kernels-community #1153",
    "vllm-xpu-kernels #66", "sglang #25919", "tpu-inference #1386", "vLLM #41598", "sglang #35697", "neuralmagic/vllm #92",
    "mlx #3854", "vllm-ascend #9159", "sglang #32839", "vLLM #48810", "oneDNN #476", "ROCm/TransformerEngine #485",
    "vLLM #40628", "vLLM #50292", "vLLM #31643", "vLLM #57158",
}
"""What public projects shipped in ops, attention, sampling and the engine, by one report of each kind."""


@pytest.fixture(scope="module")
def oracle() -> tested.Remembering:
    return tested.Remembering()


def quick(variant: Variant) -> list:
    listed = {case.id for case in quick_cases()}
    return [case for case in tested.cases_of(variant) if case.id in listed]


def test_there_are_enough_bugs_and_legal_variants_each_with_a_name_of_its_own() -> None:
    assert len(BUGS) >= 80 and len(LEGAL) >= 20
    for variants in (BUGS, LEGAL):
        names = Counter(variant.name for variant in variants)
        assert max(names.values()) == 1
        assert all(re.fullmatch(r"[a-z_]+\.[a-z0-9_]+", name) for name in names)


def test_every_kind_of_bug_that_shipped_is_planted() -> None:
    planted = " ".join(variant.source for variant in BUGS)
    assert [known for known in sorted(KNOWN_BUGS) if known not in planted] == []


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_planted_bugs_are_killed(op: str, oracle: tested.Remembering) -> None:
    bugs = [bug for bug in BUGS if bug.op == op]
    survivors = [bug for bug in bugs if tested.try_out(bug, quick(bug), oracle).case is None]
    assert [bug.name for bug in survivors if tested.try_out(bug, tested.cases_of(bug), oracle).case is None] == []
    assert len(survivors) <= max(1, len(bugs) // 20), f"the quick list should kill 95 %: {[bug.name for bug in survivors]}"


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({variant.op for variant in LEGAL}))
def test_legal_variants_are_not_failed(op: str, oracle: tested.Remembering) -> None:
    findings = [tested.try_out(variant, tested.cases_of(variant)[:24], oracle) for variant in LEGAL if variant.op == op]
    assert [(found.name, found.case, found.detail) for found in findings if found.case is not None] == []


def test_a_kernel_that_says_yes_and_computes_wrong_says_no_and_computes_or_gives_no_reason_is_told_so() -> None:
    said = {found.name: found.detail for found in tested.selftest(True, ["attention.says", "attention.future"]).bugs}
    assert "times that of a naive evaluation" in said["attention.future_key_seen"]
    assert "can be bound to it all the same" in said["attention.says_no_and_computes"]
    assert "a refusal is a reason that a person can read" in said["attention.says_no_without_a_reason"]
    assert "IndexError" in said["attention.says_yes_and_raises"]


def test_a_report_tells_which_case_killed_which_bug_and_the_case_kills_it_alone() -> None:
    heard: list[tested.Finding] = []
    report = tested.selftest(True, ["sample.top_k_zero_is_one", "rope.float32"], heard.append)
    [killed], [legal] = report.bugs, report.legal
    assert heard == [killed, legal] and report.sound
    assert killed.case is not None and legal.case is None
    [bug] = [bug for bug in BUGS if bug.name == killed.name]
    family = FAMILIES[killed.case.partition(":")[0]]
    [case] = [case for case in family.cases() if case.id == killed.case]
    assert case.run(Rig(bug.make(), reopen=bug.make)).verdict not in GOOD
    written = io.StringIO()
    tested.show(report, Console(file=written, width=260))
    assert killed.case in written.getvalue() and "1 of 1 planted bugs killed by the quick list" in written.getvalue()


def test_a_survivor_and_a_failed_legal_variant_make_the_suite_unsound() -> None:
    survived = tested.Finding("a.b", "", None, "", 5, 0.1)
    killed = tested.Finding("a.c", "", "x:y=1", "why", 5, 0.1)
    assert tested.Report(True, (killed,), (survived,), 0.2).sound
    assert not tested.Report(True, (survived,), (), 0.2).sound
    assert not tested.Report(True, (), (killed,), 0.2).sound


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"sample\.top_k_zero_is_one"):
        tested.selftest(True, ["sample.top_k_zero_is_two"])


def test_the_platform_of_a_variant_is_the_reference_but_for_its_kernels() -> None:
    plain = MutantPlatform()
    [bug] = [bug for bug in BUGS if bug.name == "rope.scale_dropped"]
    ours = {kernel.op: kernel.name for kernel in bug.make().kernels()}
    assert {op for op, name in ours.items() if name.startswith("planted.")} == {"rope"}
    assert set(ours) == {kernel.op for kernel in plain.kernels()}


# Bugs in sources. That they die is for tests/test_source_bugs.py, which needs torch and triton.

def test_there_are_enough_bugs_in_triton_sources_and_each_file_of_device_code_has_some() -> None:
    assert len(SOURCE_BUGS) >= 100
    assert max(Counter(bug.name for bug in (*SOURCE_BUGS, *BUGS)).values()) == 1
    planted_in = {ROOT / bug.file for bug in SOURCE_BUGS}
    assert [path.name for path in (ROOT / "platforms/families/triton").glob("*_kernel.py") if path not in planted_in] == []


@pytest.mark.parametrize("bug", SOURCE_BUGS, ids=lambda bug: bug.name)
def test_a_bug_changes_one_place_of_its_file(bug: SourceBug) -> None:
    assert bug.text() != (ROOT / bug.file).read_text()


def test_killers_are_cases_of_the_quick_list_that_concern_their_bug() -> None:
    listed = {case.id for case in quick_cases()}
    variants = {bug.name: bug.variant() for bug in SOURCE_BUGS}
    assert [name for name in killers() if name not in variants] == []
    assert [(name, case) for name, case in killers().items() if case not in listed] == []
    assert [(name, case) for name, case in killers().items() if not case.startswith(variants[name].families)] == []


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.find

    def find(text: str) -> object:
        if text.endswith(":interpreted"):
            raise PlatformUnavailable("Python lacks torch and triton. pip install torch triton")
        return right(text)

    monkeypatch.setattr(registry, "find", find)


@pytest.mark.usefixtures("no_triton")
def test_bugs_of_a_platform_that_cannot_run_here_are_said_to_be_left_out() -> None:
    report = tested.selftest(True, ["add_rms_norm."])
    [left_out] = report.left_out
    assert left_out.platform == "cuda:interpreted" and left_out.bugs == 2 and "pip install torch triton" in left_out.reason
    assert report.bugs and all("triton" not in found.name for found in report.bugs)
    written = io.StringIO()
    tested.show(report, Console(file=written, width=260))
    assert "left out: 2 planted bugs in kernels of cuda:interpreted. Python lacks torch and triton" in written.getvalue()


@pytest.mark.usefixtures("no_triton")
def test_nothing_but_bugs_that_cannot_be_tried_is_refused_with_the_reason() -> None:
    with pytest.raises(PlatformUnavailable, match="Python lacks torch and triton"):
        tested.selftest(True, platform="cuda:interpreted")
    with pytest.raises(PlatformUnavailable, match="no planted bug is one of platform 'abacus'"):
        tested.selftest(True, platform="abacus")
