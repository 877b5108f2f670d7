"""A bundle is what its results say, to the byte: whoever changes it afterwards is found out, whatever else they recompute."""
from __future__ import annotations

import getpass
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from inferplane.cli import main
from inferplane.conformance import bundle
from inferplane.conformance.bundle import ENVIRONMENT, JUNIT, RESULTS, SUMS, VERDICT
from inferplane.conformance.case import Verdict
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import Result, run, run_here
from inferplane.conformance.select import Selection
from inferplane.errors import ConfigError
from inferplane.platforms import registry

ASKED = Selection(queries=("lookup.derive:tokens=1;*", "lookup.derive:tokens=17;*"))
FILES = (RESULTS, JUNIT, ENVIRONMENT, VERDICT, SUMS)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    rig = Rig(registry.named("reference"))
    try:
        return list(run_here(rig, ASKED.cases(), {}))
    finally:
        rig.platform.close()


@pytest.fixture
def folder(results: list[Result], tmp_path: Path) -> Path:
    bundle.write(tmp_path / "made", "reference", results, ASKED)
    return tmp_path / "made"


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        bundle.verify(folder)
    return str(caught.value)


def sum_again(folder: Path) -> None:
    """What a forger would do who knows the format."""
    names = (RESULTS, JUNIT, ENVIRONMENT, VERDICT)
    lines = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / SUMS).write_text("".join(lines))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


# As it was written


def test_a_bundle_is_read_as_it_was_written(folder: Path, results: list[Result]) -> None:
    found = bundle.verify(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert (found.results, found.platform, found.selection) == (results, "reference", ASKED)
    assert found.judgement.passed
    assert found.judgement.counts == {"pass": len(results)} and found.judgement.grades == {"device": len(results)}


def test_the_environment_says_what_is_listed_and_nobody_s_name(folder: Path) -> None:
    said = json.loads((folder / ENVIRONMENT).read_text())
    assert set(said) == {"suite", "contract", "platform", "selection", "manifest", "stale", "made_on", "written"}
    assert [set(one) for one in said["made_on"]] == [{"packages", "python", "machine", "processor"}]
    assert set(said["made_on"][0]["packages"]) <= set(bundle.PACKAGES) and "numpy" in said["made_on"][0]["packages"]
    text = (folder / ENVIRONMENT).read_text()
    for private in (str(Path.home()), str(folder.parent), f"/{getpass.getuser()}", "/"):
        assert private not in text


def test_junit_xml_has_each_case_and_its_end(results: list[Result], tmp_path: Path) -> None:
    ends = [Verdict.FAIL, Verdict.ERROR, Verdict.TIMEOUT, Verdict.XPASS, Verdict.UNSUPPORTED, Verdict.XFAIL]
    told = [replace(one, verdict=end, detail="a < b & \x00\x1b[31m]]>") for one, end in zip(results, ends, strict=False)]
    told += results[len(ends):]
    bundle.write(tmp_path, "acme:mode=<1>", told, ASKED)
    suite = ET.fromstring((tmp_path / JUNIT).read_text())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(results)), "2", "2")
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == [one.case for one in results]
    kinds = [[child.tag for child in cases[one.case]] for one in told]
    assert kinds == [["failure"], ["error"], ["error"], ["failure"], ["system-out"], ["system-out"], *[[]] * (len(results) - len(ends))]
    [failure] = cases[results[0].case]
    assert failure.get("message") == "fail"
    assert failure.text == f"a < b & [31m]]>\ninferplane conformance run --platform 'acme:mode=<1>' '{results[0].case}'"


def test_the_verdict_is_a_function_of_the_results(results: list[Result]) -> None:
    cases = ASKED.cases()
    def judged(told: list[Result], stale: tuple[str, ...] = (), asked: Selection = ASKED) -> bundle.Judgement:
        return bundle.judgement(told, asked, cases, stale)

    first, rest = results[0], results[1:]
    assert judged(results).passed
    assert judged([replace(first, verdict=Verdict.XFAIL), *rest]).passed
    for verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.TIMEOUT, Verdict.XPASS):
        assert judged([replace(first, verdict=verdict), *rest]).reasons == (f"{verdict}: {first.case}",)
    assert judged(rest).reasons == (f"no result: {first.case}",)
    assert judged([first, *results]).reasons == (f"more than one result: {first.case}",)
    assert judged([*results, replace(first, case="lookup.derive:x=1")]).reasons == ("not asked for: lookup.derive:x=1",)
    assert judged(results, ("gone",)).reasons == ("stale entry in xfail.toml: gone",)
    assert "refused all" in judged([replace(one, verdict=Verdict.UNSUPPORTED) for one in results]).reasons[0]


def test_a_certificate_is_whole_and_from_the_device(results: list[Result]) -> None:
    cases = ASKED.cases()
    whole = Selection()
    assert bundle.judgement(results, whole, cases, ()).certificate
    for partial, said in ((ASKED, "only what lookup.derive"), (Selection(quick=True), "only the quick list"),
                          (Selection(shard=(1, 2)), "only shard 1/2")):
        found = bundle.judgement(results, partial, cases, ())
        assert found.passed and not found.certificate and said in found.withheld[0]
    interpreted = [replace(results[0], grade="interpreted"), *results[1:]]
    assert bundle.judgement(interpreted, whole, cases, ()).withheld == ("1 results at grade interpreted",)
    refusing = [replace(results[0], verdict=Verdict.UNSUPPORTED), *results[1:]]
    assert bundle.judgement(refusing, whole, cases, ()).certificate
    assert bundle.judgement(refusing, Selection(profile="core"), cases, ()).withheld == ("1 unsupported in a profile, which must pass",)


# Changed after the run


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for place in range(0, len(content), max(1, len(content) // 60)):
        (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "changed after the run" in refused(folder)
    (folder / name).write_bytes(content + b"\n")
    assert "changed after the run" in refused(folder)
    (folder / name).write_bytes(content)
    assert bundle.verify(folder).judgement.passed


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


def test_a_sum_that_was_taken_off_the_list_is_missed(folder: Path) -> None:
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if JUNIT not in line))
    assert f"{JUNIT} was changed after the run" in refused(folder)
    (folder / SUMS).write_text("".join([*lines, f"{'0' * 64}  ../elsewhere\n"]))
    assert "lists other files" in refused(folder)


def without_a_line(lines: list[str]) -> list[str]:
    return lines[1:]


def with_a_line_twice(lines: list[str]) -> list[str]:
    return [*lines, lines[0]]


def changed(**values: Any) -> Callable[[list[str]], list[str]]:
    return lambda lines: [json.dumps(json.loads(lines[0]) | values), *lines[1:]]


FORGED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "removed": (without_a_line, "says otherwise than its results: .*passed False.*no result"),
    "duplicated": (with_a_line_twice, "says otherwise than its results: .*more than one result"),
    "failed": (changed(verdict="fail"), "says otherwise than its results: recomputed {'fail': 1"),
    "other-case": (changed(case="lookup.derive:tokens=2;slots=1;late=none"), "says otherwise than its results"),
    "grade": (changed(grade="interpreted"), "says otherwise than its results"),
    "feature": (changed(feature="attention.decode"), "tells .* as attention.decode, level 1, which it is not"),
    "level": (changed(level=4), "level 4, which it is not"),
    "detail": (changed(verdict="pass", detail="but"), "junit.xml says otherwise than results.jsonl"),
    "no-verdict": (changed(verdict="superb"), "results.jsonl is not as the suite writes it: ValueError: 'superb'"),
    "no-grade": (changed(grade="heard of"), "is not as the suite writes it: ValueError: grade 'heard of'"),
    "no-result": (lambda lines: ["{", *lines[1:]], "is not as the suite writes it"),
    "unknown-key": (changed(comment="nice"), "is not as the suite writes it: TypeError"),
}


@pytest.mark.parametrize(("change", "told"), FORGED.values(), ids=FORGED)
def test_forged_results_are_refused_although_the_sums_fit(change: Callable[[list[str]], list[str]], told: str, folder: Path) -> None:
    lines = (folder / RESULTS).read_text().splitlines()
    (folder / RESULTS).write_text("".join(f"{line}\n" for line in change(lines)))
    sum_again(folder)
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        bundle.verify(folder)


def test_a_failure_cannot_be_taken_out_of_the_verdict(results: list[Result], folder: Path) -> None:
    bundle.write(folder, "reference", [replace(results[0], verdict=Verdict.FAIL), *results[1:]], ASKED)
    assert not bundle.verify(folder).judgement.passed
    edit(folder / VERDICT, lambda said: said | {"passed": True, "reasons": [], "counts": {"pass": len(results)}})
    sum_again(folder)
    assert "says otherwise than its results" in refused(folder)


SELECTIONS = {
    "shard": ({"shard": [1, 2]}, "asked other cases"), "query": ({"queries": ["lookup.derive:tokens=1;*"]}, "asked other cases"),
    "quick": ({"quick": True}, "says otherwise"), "profile": ({"profile": "cor"}, "no profile 'cor'"),
    "more": ({"mood": "good"}, "is not as the suite writes it"), "bad-shard": ({"shard": [3, 2]}, "shard 3/2"),
}


@pytest.mark.parametrize(("change", "told"), SELECTIONS.values(), ids=SELECTIONS)
def test_results_of_one_selection_do_not_pass_for_another(change: dict[str, Any], told: str, folder: Path) -> None:
    edit(folder / ENVIRONMENT, lambda said: said | {"selection": said["selection"] | change})
    sum_again(folder)
    assert told in refused(folder)


def test_another_version_of_the_suite_is_told_before_anything_else(folder: Path) -> None:
    edit(folder / ENVIRONMENT, lambda said: said | {"suite": "0.9", "manifest": "?"})
    (folder / RESULTS).write_text("another format")
    sum_again(folder)
    assert "was made by suite 0.9, and this is 1.0; verify it with inferplane" in refused(folder)


@pytest.mark.parametrize("gone", ["suite", "platform", "selection", "manifest", "stale", "made_on"])
def test_an_environment_that_lacks_something_is_refused_in_words(gone: str, folder: Path) -> None:
    edit(folder / ENVIRONMENT, lambda said: {name: value for name, value in said.items() if name != gone})
    sum_again(folder)
    assert f"environment.json is not as the suite writes it: KeyError: '{gone}'" in refused(folder)


def test_what_is_no_bundle_is_called_so(tmp_path: Path) -> None:
    assert f"{tmp_path} is no bundle: it has no SHA256SUMS" in refused(tmp_path)


# Shards


@pytest.fixture
def shards(results: list[Result], tmp_path: Path) -> list[Path]:
    told = {one.case: one for one in results}
    made = []
    for k in (1, 2, 3):
        selection = replace(ASKED, shard=(k, 3))
        bundle.write(tmp_path / str(k), "reference", [told[case.id] for case in selection.cases()], selection)
        made.append(tmp_path / str(k))
    return made


def test_shards_merge_into_the_whole(shards: list[Path], results: list[Result], folder: Path, tmp_path: Path) -> None:
    bundle.merge(shards[::-1], tmp_path / "merged")
    merged, whole = bundle.verify(tmp_path / "merged"), bundle.verify(folder)
    assert (merged.results, merged.judgement, merged.selection) == (whole.results, whole.judgement, whole.selection)
    assert merged.environment["manifest"] == whole.environment["manifest"]


def test_a_merged_bundle_was_made_where_its_shards_were(shards: list[Path], tmp_path: Path) -> None:
    for shard, python in zip(shards, ("3.11.1", "3.12.2", "3.12.2"), strict=True):
        edit(shard / ENVIRONMENT, lambda said, python=python: said | {"made_on": [said["made_on"][0] | {"python": python}]})
        sum_again(shard)
    bundle.merge(shards, tmp_path / "merged")
    assert [one["python"] for one in bundle.verify(tmp_path / "merged").environment["made_on"]] == ["3.11.1", "3.12.2"]


def test_a_failure_and_a_stale_excuse_survive_a_merge(shards: list[Path], results: list[Result], tmp_path: Path) -> None:
    found = bundle.verify(shards[1])
    bundle.write(shards[1], "reference", [replace(found.results[0], verdict=Verdict.FAIL), *found.results[1:]], found.selection, ["gone"])
    merged = bundle.merge(shards, tmp_path / "merged")
    assert merged.reasons == (f"fail: {found.results[0].case}", "stale entry in xfail.toml: gone")


def test_shards_that_do_not_fit_are_refused(shards: list[Path], results: list[Result], folder: Path, tmp_path: Path) -> None:
    def told(folders: list[Path]) -> str:
        with pytest.raises(ConfigError) as caught:
            bundle.merge(folders, tmp_path / "merged")
        return str(caught.value)

    assert "missing or given twice: 2" in told([shards[0], shards[2]])
    assert "missing or given twice: 1, 3" in told([shards[0], shards[1], shards[0]])
    assert "are no shards of one run" in told([shards[0], shards[1], folder])
    other = shutil.copytree(shards[2], tmp_path / "other")
    found = bundle.verify(other)
    bundle.write(other, "cpu", found.results, found.selection)
    assert "are no shards of one run" in told([shards[0], shards[1], other])
    (shards[1] / RESULTS).write_text("")
    assert "was changed after the run" in told(shards)


# The commands


def test_commands_verify_merge_and_show(shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = str(tmp_path / "merged")
    assert main(["conformance", "merge", *map(str, shards), "-o", merged]) == 0
    assert main(["conformance", "verify", merged]) == 0
    said = capsys.readouterr().out
    assert "is as it was written: reference passed 18 cases (18 pass); certificate: no, of the whole list only what lookup.derive" in said
    assert main(["conformance", "verify", merged, "--json"]) == 0
    found = json.loads(json.dumps(asdict(bundle.verify(Path(merged)).judgement)))
    assert json.loads(capsys.readouterr().out) == {**found, "platform": "reference"}
    assert main(["conformance", "matrix", merged, str(shards[0]), "-o", str(tmp_path / "matrix")]) == 0
    assert (tmp_path / "matrix" / "matrix.html").is_file() and "18/18" in (tmp_path / "matrix" / "matrix.md").read_text()


def test_a_changed_bundle_ends_the_command_with_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / RESULTS).write_text("")
    for command in (["verify", str(folder)], ["matrix", str(folder)]):
        assert main(["conformance", *command]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("inferplane: ") and "results.jsonl was changed after the run" in said.err and not said.out


def test_a_failed_bundle_verifies_and_still_fails(results: list[Result], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle.write(folder, "reference", [replace(results[0], verdict=Verdict.TIMEOUT), *results[1:]], ASKED)
    assert main(["conformance", "verify", str(folder)]) == 1
    assert "is as it was written: reference failed 18 cases" in capsys.readouterr().out


def test_two_cases_at_a_time_give_the_results_of_one_in_the_same_order(results: list[Result]) -> None:
    found = list(run("reference", ASKED.cases(), {}, jobs=2))
    assert [(one.case, one.verdict) for one in found] == [(one.case, one.verdict) for one in results]
