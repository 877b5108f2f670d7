"""The grade `compiled`: a case is what its kernels became for a chip that is not there; nothing compiled is nothing shown."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from inferplane.cli import main
from inferplane.conformance import bundle, matrix, summary
from inferplane.conformance.bundle import KERNELS, RESULTS, SUMS
from inferplane.conformance.case import Case, Verdict
from inferplane.conformance.cases import find
from inferplane.conformance.compiled import code_id, compile_case, targets_of
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import Result, replay
from inferplane.conformance.select import Selection
from inferplane.errors import ConfigError
from inferplane.ops import Kernel
from inferplane.platforms import registry
from inferplane.platforms.contract import KernelCode, Platform

NORM = "norm.rms:dtype=float32;rows=2;size=64;epsilon=1e-5;values=normal;offset=0"
ASKED = Selection(queries=("norm.rms:dtype=float32;rows=2;size=64;*",), targets=("chip_a", "chip_b"))
GOOD = KernelCode("rms_norm", "chip_a", "x:*fp32", "num_warps=4", 40, 1024, 0)
SPILLS = replace(GOOD, options="num_warps=1", spilled_bytes=8, reason="8 bytes of a thread spill")


@dataclass
class Pretended:
    """A compiler whose kernels become what the test says."""

    platform: Platform
    becomes: Sequence[KernelCode]
    own: Sequence[str] = ("rms_norm",)
    started: list[KernelCode] = field(default_factory=list)

    @property
    def kernels(self) -> list[Kernel]:
        return [kernel for kernel in self.platform.kernels() if kernel.op in self.own]

    def made(self) -> list[KernelCode]:
        told, self.started = self.started, []
        return told


def compiled(becomes: Sequence[KernelCode], case: str = NORM, own: Sequence[str] = ("rms_norm",)) -> Any:
    platform = registry.named("reference")
    compiler = Pretended(platform, becomes, own)
    rig = Rig(platform)

    def starting(run: Callable[..., Any]) -> Callable[..., Any]:
        def start(*given: Any) -> Any:
            compiler.started += compiler.becomes
            return run(*given)
        return start

    rig.kernels = [replace(kernel, run=starting(kernel.run)) for kernel in rig.kernels]
    try:
        return compile_case(find(case), rig, compiler)
    finally:
        platform.close()


def test_a_case_passes_where_every_kernel_that_it_starts_fits() -> None:
    outcome = compiled([GOOD, GOOD])
    assert (outcome.verdict, outcome.codes) == (Verdict.PASS, (GOOD,))


def test_a_kernel_that_spills_fails_the_case_with_its_figures() -> None:
    outcome = compiled([GOOD, SPILLS])
    assert outcome.verdict is Verdict.FAIL
    assert "rms_norm on chip_a (40 registers; x:*fp32; num_warps=1): 8 bytes of a thread spill" in outcome.detail


def test_kernels_that_start_nothing_prove_nothing() -> None:
    assert compiled([]).verdict is Verdict.UNCOMPILED


def test_what_a_library_computes_is_not_even_run() -> None:
    outcome = compiled([GOOD], own=["linear"])
    assert (outcome.verdict, outcome.codes) == (Verdict.UNCOMPILED, ())


def results(cases: Sequence[Case], **codes: KernelCode) -> tuple[list[Result], dict[str, KernelCode]]:
    """On each chip, the code that is named for it; where none is, nothing was compiled."""
    told = []
    for target in ASKED.targets:
        own = codes.get(target)
        verdict = Verdict.UNCOMPILED if own is None else Verdict.FAIL if own.reason else Verdict.PASS
        named = () if own is None else (code_id(own),)
        told += [Result(case.id, case.feature, case.level, verdict, "compiled", "", ("rms_norm",), 0.1, target, named) for case in cases]
    return told, {code_id(code): code for code in codes.values()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    told, codes = results(ASKED.cases(), chip_a=GOOD)
    bundle.write(tmp_path / "made", "acme", told, ASKED, codes=codes)
    return tmp_path / "made"


def test_a_bundle_holds_each_case_once_a_chip_and_the_kernels_by_name(folder: Path) -> None:
    found = bundle.verify(folder)
    assert found.judgement.counts == {"pass": len(ASKED.cases()), "uncompiled": len(ASKED.cases())}
    assert found.judgement.passed and not found.judgement.certificate
    assert found.codes == {code_id(GOOD): GOOD}


def test_a_chip_without_results_is_missed(tmp_path: Path) -> None:
    told, codes = results(ASKED.cases(), chip_a=GOOD)
    found = bundle.write(tmp_path, "acme", [one for one in told if one.target == "chip_a"], ASKED, codes=codes)
    assert not found.passed and all("on chip_b" in reason for reason in found.reasons)


def sum_again(folder: Path) -> None:
    names = [line.split()[1] for line in (folder / SUMS).read_text().splitlines()]
    (folder / SUMS).write_text("".join(f"{bundle._sum(folder / name)}  {name}\n" for name in names))


@pytest.mark.parametrize("forged", [
    lambda folder: edit(folder / KERNELS, reason="9 bytes of a thread spill"),
    lambda folder: edit(folder / KERNELS, kernel="other"),
    lambda folder: edit(folder / RESULTS, codes=[]),
    lambda folder: (folder / KERNELS).write_text(""),
], ids=["a spill hidden", "another kernel", "a pass with no kernel", "no kernels"])
def test_a_forged_figure_is_found_out_although_the_sums_are_right(folder: Path, forged: Callable[[Path], Any]) -> None:
    forged(folder)
    sum_again(folder)
    with pytest.raises(ConfigError):
        bundle.verify(folder)


def edit(path: Path, **changed: Any) -> None:
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changed), *rest]) + "\n")


def test_shards_are_joined_with_their_kernels(tmp_path: Path) -> None:
    for k, code in ((1, GOOD), (2, replace(GOOD, options="num_warps=8"))):
        shard = replace(ASKED, shard=(k, 2))
        told, codes = results(shard.cases(), chip_a=code)
        bundle.write(tmp_path / str(k), "acme", told, shard, codes=codes)
    assert bundle.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "whole").passed
    found = bundle.verify(tmp_path / "whole")
    assert len(found.codes) == 2
    assert [one.target for one in found.results] == sorted(one.target for one in found.results)


def test_the_matrix_has_a_column_and_a_line_of_figures_for_each_chip(folder: Path) -> None:
    made = [bundle.verify(folder)]
    table = matrix.matrix(made)
    assert table.columns == ("acme chip_a", "acme chip_b")
    assert {table.cells["norm.rms", column].kind for column in table.columns} == {"good", "none"}
    for text in (matrix.markdown(table, made).replace("\\_", "_"), matrix.page(table, made)):
        assert "rms_norm" in text and "1: 40 registers, 1 KiB" in text


def test_a_kernel_that_spills_is_marked_in_the_matrix(tmp_path: Path) -> None:
    told, codes = results(ASKED.cases(), chip_a=SPILLS)
    assert not bundle.write(tmp_path, "acme", told, ASKED, codes=codes).passed
    made = [bundle.verify(tmp_path)]
    assert f"{matrix.MARKS['bad']} 1: 40 registers, 1 KiB, 8 bytes spill, 1 refused" in matrix.markdown(matrix.matrix(made), made)


def test_a_summary_shows_what_its_bundle_shows(folder: Path, tmp_path: Path) -> None:
    whole = bundle.verify(folder)
    summary.save(tmp_path / "acme.json", whole)
    kept = summary.read(tmp_path / "acme.json")
    assert kept == summary.summary_of(whole)
    assert matrix.matrix([kept]) == matrix.matrix([whole])
    assert (tmp_path / "acme.json").stat().st_size < 4096


def test_what_is_no_summary_is_told_with_what_writes_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="conformance summary BUNDLE"):
        summary.read(tmp_path / "x.json")


def test_a_case_replays_on_its_chip() -> None:
    assert replay("acme", NORM, "chip_a").startswith("inferplane conformance run --platform acme --grade compiled --target chip_a ")


def test_only_cases_of_ops_are_compiled() -> None:
    assert {case.level for case in replace(ASKED, queries=()).cases()} == {1, 2}
    with pytest.raises(ConfigError, match="cases of ops"):
        replace(ASKED, queries=("engine",)).cases()


@pytest.mark.parametrize(("platform", "targets", "said"), [
    ("reference", (), "no grade compiled; platforms that do: cuda, rocm"), ("cuda:1", (), "choose chips with --target"),
], ids=["no compiler", "options"])
def test_a_platform_that_compiles_for_nothing_says_which_do(platform: str, targets: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        targets_of(platform, targets)


def test_an_unknown_chip_is_told_with_those_that_are_known() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ConfigError, match="sm_80, sm_90, sm_100; asked for 'sm_91'"):
        targets_of("cuda", ["sm_91"])


def test_a_platform_of_a_chip_that_is_not_there_cannot_be_opened_by_name() -> None:
    pytest.importorskip("torch")
    with pytest.raises(Exception, match="--grade compiled --target gfx942"):
        registry.named("rocm:gfx942")


def test_targets_without_the_grade_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "run", "--platform", "cuda", "--target", "sm_90"]) == 1
    assert "add --grade compiled" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "target"), [("cuda", "sm_90"), ("rocm", "gfx942")], ids=["cuda", "rocm"])
def test_a_run_compiles_for_real(platform: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    ran = main(["conformance", "run", "--platform", platform, "--grade", "compiled", "--target", target, "--json",
                "-o", str(tmp_path), NORM, "elementwise.add:dtype=float32;shape=2x33;values=normal"])
    told = json.loads(capsys.readouterr().out)
    assert ran == 0 and told["counts"] == {"pass": 1, "uncompiled": 1}
    [kernel] = told["kernels"]
    assert kernel["kernel"] == "rms_norm" and kernel["registers"] > 0 and not kernel["spilled_bytes"]
    assert bundle.verify(tmp_path).judgement.passed
