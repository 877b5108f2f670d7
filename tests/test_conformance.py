"""The suite itself: how verdicts come about, that bad platforms are caught in words, and what a person sees."""
from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from inferplane.cli import main
from inferplane.conformance import live
from inferplane.conformance.address import Address
from inferplane.conformance.case import Case, Outcome, Verdict
from inferplane.conformance.cases import FAMILIES, all_cases, find
from inferplane.conformance.oracle import Oracle
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import Result, replay, run, run_here
from inferplane.conformance.xfail import Excuse, excused, stale
from inferplane.ops import Kernel, always
from inferplane.platforms.contract import Options
from inferplane.platforms.reference import Reference
from rich.console import Console

# Verdicts and excuses

TODAY = date(2027, 3, 1)
EXCUSE = Excuse("lookup.derive:tokens=1;slots=1;late=none", "the driver drops the last token", date(2027, 3, 1))


@pytest.mark.parametrize(("verdict", "heard"), [
    (Verdict.PASS, Verdict.XPASS), (Verdict.FAIL, Verdict.XFAIL), (Verdict.ERROR, Verdict.XFAIL), (Verdict.TIMEOUT, Verdict.TIMEOUT),
    (Verdict.UNSUPPORTED, Verdict.UNSUPPORTED),
])
def test_an_excuse_turns_a_failure_into_an_expected_one_and_a_pass_into_a_fault(verdict: Verdict, heard: Verdict) -> None:
    outcome = Outcome(verdict, "what happened")
    assert excused(outcome, None, TODAY) is outcome
    assert excused(outcome, EXCUSE, TODAY).verdict is heard
    late = excused(outcome, EXCUSE, date(2027, 3, 2))
    assert late.verdict is (Verdict.XPASS if verdict is Verdict.PASS else verdict), "an expired excuse excuses nothing"
    if verdict is Verdict.FAIL:
        assert late.detail == "what happened [the excuse in xfail.toml expired on 2027-03-01: the driver drops the last token]"


def test_stale_excuses_are_those_of_no_case_and_of_refused_ones() -> None:
    known = {name: replace(EXCUSE, case=name) for name in ("gone", "kept", "refused")}
    assert stale(known, ["kept", "refused", "other"], ["refused", "other"]) == ["gone", "refused"]


# A platform from outside, installed for one test

TROUBLED = """
    import os, signal, sys, time
    from dataclasses import replace
    from inferplane.platforms.contract import Capabilities
    from inferplane.platforms.reference import Reference

    def run(spec, batch, state):
        match len(batch.tokens):
            case 2: time.sleep(60)
            case 17: os._exit(3)
            case 256: os.kill(os.getpid(), signal.SIGKILL)
        return spec.reference(batch, state)

    class Troubled(Reference):
        name = "troubled"
        preference = -1
        capabilities = replace(Reference.capabilities, grade="emulated")

        def kernels(self):
            return [replace(one, run=run) if one.op == "derive" else one for one in super().kernels()]
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of a platform `troubled`; what it excuses is to be written beside its module."""
    (tmp_path / "inferplane_troubled.py").write_text(dedent(TROUBLED))
    facts = tmp_path / "inferplane_troubled-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: inferplane-troubled\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[inferplane.platforms]\ntroubled = inferplane_troubled:Troubled\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("INFERPLANE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("inferplane_troubled", None)


def derive(tokens: int) -> Case:
    return find(f"lookup.derive:tokens={tokens};slots=4;late=some")


def test_a_kernel_that_hangs_or_dies_costs_its_own_case_alone(outside: Path) -> None:
    cases = [derive(tokens) for tokens in (1, 2, 17, 256, 1)]
    found = list(run("troubled", cases, {}, timeout_seconds=2.0))
    assert [one.verdict for one in found] == [Verdict.PASS, Verdict.TIMEOUT, Verdict.ERROR, Verdict.ERROR, Verdict.PASS]
    assert [one.detail for one in found[1:4]] == [
        "no answer within 2 s", "the process died with exit code 3", "the process died with signal 9"]
    assert {one.grade for one in found} == {"interpreted"}, "emulated counts as interpreted, and the grade is known before a case runs"


def test_a_worker_gives_what_this_process_gives(outside: Path) -> None:
    cases = [find(one) for one in ("contract.name", "lookup.derive:tokens=1;slots=1;late=all",
                                   "kv.blocks:dtype=float16;heads=2;dim=33;block=8;layers=3")]
    here = Rig(Reference(Options()), Oracle())
    try:
        expected = [replace(one, seconds=0.0) for one in run_here(here, cases, {})]
    finally:
        here.platform.close()
    assert [replace(one, seconds=0.0) for one in run("reference", cases, {})] == expected


def entry(case: str, reason: str = "the driver drops the last token", expires: str = "2999-01-01") -> str:
    return f'[[xfail]]\ncase = "{case}"\nreason = "{reason}"\nexpires = {expires}\n'


GOOD_CASE, BAD_CASE = derive(1).id, derive(17).id
XFAILS: dict[str, tuple[str, bool, str]] = {
    "known": (entry(BAD_CASE), True, "xfail"),
    "unexpected-pass": (entry(GOOD_CASE) + entry(BAD_CASE), False, f"xpass: {GOOD_CASE}"),
    "expired": (entry(BAD_CASE, expires="2020-01-01"), False, f"error: {BAD_CASE}"),
    "stale": (entry(BAD_CASE) + entry("lookup.derive:tokens=5;slots=1;late=none"), False,
              "stale entry in xfail.toml: lookup.derive:tokens=5"),
}


@pytest.mark.parametrize(("text", "passed", "told"), XFAILS.values(), ids=XFAILS)
def test_known_failures_travel_with_the_platform(outside: Path, text: str, passed: bool, told: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "xfail.toml").write_text(text)
    command = ["conformance", "run", "--platform", "troubled", GOOD_CASE, BAD_CASE, "-o", str(outside / "bundle"), "--timeout", "20"]
    assert main(command) == (0 if passed else 1)
    said = capsys.readouterr()
    assert told in said.out and ("PASSED" if passed else "FAILED") in said.out
    assert "no certificate" in said.out and "results at grade interpreted" in said.out
    assert main(["conformance", "verify", str(outside / "bundle")]) == (0 if passed else 1)
    if not passed and "stale" not in told:
        assert replay("troubled", told.partition(": ")[2]) in said.err.replace("\n", "")


MALFORMED = {
    "no-toml": ("[[xfail]", "is not TOML"), "table": ("[xfail]\ncase = 'x'", "must have nothing but entries that begin with"),
    "other": (entry(BAD_CASE).replace("xfail", "xfails"), "has xfails, and must have nothing but"),
    "twice": (entry("a") * 2, "excuses a twice"),
    "no-reason": (entry("a", reason="later"), "needs case (an exact address), reason (a sentence)"),
    "time": (entry("a", expires="2027-01-01T10:00:00"), "and expires (a date such as"),
    "text": (entry("a", expires="'soon'"), "and expires"),
    "missing": ("[[xfail]]\ncase = 'a'", "needs case"), "more": (entry("a") + "who = 'me'\n", "needs case"),
}


@pytest.mark.parametrize(("text", "told"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_excuse_is_refused_before_anything_runs(outside: Path, text: str, told: str,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "xfail.toml").write_text(text)
    assert main(["conformance", "run", "--platform", "troubled", GOOD_CASE, "-o", str(outside / "bundle")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("inferplane: ") and "xfail.toml" in said and told in said
    assert not (outside / "bundle").exists()


# Bad platforms, each caught in words


def told(case: str | Case, **changes: Callable[..., Any]) -> Outcome:
    """A case on the reference platform, with some of its ops' kernels replaced."""
    rig = Rig(Reference(Options()))
    rig.kernels = [replace(one, **changes[one.op]) if isinstance(changes.get(one.op), dict) else
                   replace(one, run=changes[one.op]) if one.op in changes else one for one in rig.kernels]
    try:
        return (find(case) if isinstance(case, str) else case).run(rig)
    finally:
        rig.platform.close()


def case_of(family: str, **values: str) -> str:
    """The first case of a family that has these values, whatever other parameters the family has."""
    return next(case.id for case in FAMILIES[family].cases() if values.items() <= case.address.values.items())


NORM = case_of("norm.rms", dtype="float32", rows="5", size="64", values="normal")
LINEAR = case_of("linear.plain", dtype="float32", m="5", outputs="1", out="same")
WRITE = case_of("kv.write", dtype="float32", block="8", values="normal")


def right(spec: Any, x: Any, weight: Any, *rest: Any) -> Any:
    return spec.reference(x, weight, *rest).astype(x.dtype)


def wrong(spec: Any, x: Any, weight: Any) -> Any:
    return right(spec, x, weight) * np.float32(1.001)


def in_place(spec: Any, x: Any, weight: Any) -> Any:
    x[:] = right(spec, x, weight)
    return x.copy()


def changing_weights(spec: Any, x: Any, weight: Any) -> Any:
    made = right(spec, x, weight)
    weight[0][0] += 1
    return made


class Drifting:
    """Right the first time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, spec: Any, x: Any, weight: Any) -> Any:
        self.calls += 1
        return right(spec, x, weight) + np.float32(2e-7 if self.calls > 1 else 0)


class Wavering:
    """Says no to whoever asks, and yes to whoever binds."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, spec: Any) -> str | None:
        self.asked += 1
        return "not on Mondays, at least" if self.asked % 2 else None


def neighbourly(spec: Any, x: Any, weight: Any, batch: Any) -> Any:
    return right(spec, x, weight, batch) + np.float32(1e-7 * (len(x) > 1))


def wide(spec: Any, x: Any, weight: Any) -> Any:
    return spec.reference(x, weight)


def everywhere(spec: Any, k: Any, v: Any, cell: Any, batch: Any) -> None:
    spec.reference(k, v, cell, batch)
    cell.k[-1] = 0


def leaving(spec: Any, x: Any, weight: Any) -> Any:
    sys.exit(7)


CAUGHT: dict[str, tuple[str, dict[str, Any], Verdict, str]] = {
    "yes-and-wrong": (NORM, {"rms_norm": wrong}, Verdict.FAIL, "numpy.reference: the result outside its bound at ["),
    "other-dtype": (NORM, {"rms_norm": wide}, Verdict.FAIL, "numpy.reference: the result is float64 instead of float32"),
    "no-and-computes": (NORM, {"rms_norm": {"supports": Wavering()}}, Verdict.FAIL,
                        "numpy.reference refuses rms_norm (not on Mondays, at least) and can be bound to it all the same"),
    "no-without-a-reason": (NORM, {"rms_norm": {"supports": lambda spec: "no"}}, Verdict.FAIL,
                            "a refusal is a reason that a person can read"),
    "changes-its-input": (NORM, {"rms_norm": in_place}, Verdict.FAIL, "numpy.reference: it changed one of its inputs"),
    "changes-its-weight": (NORM, {"rms_norm": changing_weights}, Verdict.FAIL, "numpy.reference: a second call: result 0 differs in"),
    "second-call": (NORM, {"rms_norm": Drifting()}, Verdict.FAIL, "numpy.reference: a second call: result 0 differs in"),
    "false-promise": (LINEAR, {"linear": {"run": neighbourly, "prepare": None, "batch_invariant": True}}, Verdict.FAIL,
                      "alone: result 0 differs in"),
    "writes-elsewhere": (WRITE, {"write_kv": everywhere}, Verdict.FAIL, "a slot that was not its to write of k"),
    "raises": (NORM, {"rms_norm": lambda spec, x: x}, Verdict.ERROR, "TypeError: "),
    "exits": (NORM, {"rms_norm": leaving}, Verdict.ERROR, "SystemExit: 7"),
    "refuses": (NORM, {"rms_norm": {"supports": lambda spec: "only on the chip"}}, Verdict.UNSUPPORTED,
                "numpy.reference: only on the chip"),
}


@pytest.mark.parametrize(("case", "changes", "verdict", "said"), CAUGHT.values(), ids=CAUGHT)
def test_a_bad_kernel_is_caught_in_words(case: str, changes: dict[str, Any], verdict: Verdict, said: str) -> None:
    assert told(case).verdict is Verdict.PASS
    found = told(case, **changes)
    assert (found.verdict, said in found.detail) == (verdict, True), found


def test_a_kernel_that_changes_the_batch_is_caught() -> None:
    def run(spec: Any, batch: Any, state: Any) -> Any:
        made = spec.reference(batch, state)
        batch.tokens[:] = made.tokens
        return made

    assert told(derive(17), derive=run).detail == "numpy.reference: it changed the batch"


def test_outcomes_are_those_of_the_first_kernel_that_is_wrong() -> None:
    """Every kernel that says yes is judged, not only the preferred one."""
    rig = Rig(Reference(Options()))
    rig.kernels.append(Kernel("rms_norm", "slow.spare", always, wrong))
    try:
        assert find(NORM).run(rig).detail.startswith("slow.spare: the result outside its bound")
    finally:
        rig.platform.close()


def test_a_failure_is_the_same_in_a_fresh_process(outside: Path) -> None:
    """What its address alone says: the same numbers, the same words."""
    module = outside / "inferplane_troubled.py"
    module.write_text(module.read_text() + dedent("""
        def wrong(spec, x, weight):
            made = spec.reference(x, weight).astype(x.dtype)
            made[0, 3] *= 1.01
            return made

        Troubled.kernels = lambda self: [replace(one, run=wrong) if one.op == "rms_norm" else one for one in Reference.kernels(self)]
    """))
    command = replay("troubled", NORM).split()
    details = []
    for place in ("one", "two"):
        code = "import sys; from inferplane.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {"PYTHONPATH": str(outside), "INFERPLANE_CACHE": str(outside / place), "PATH": ""}
        done = subprocess.run([sys.executable, "-c", code, *[part.strip("'") for part in command[1:]], "-o", str(outside / f"b{place}")],
                              capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 1, done.stderr
        details.append(json.loads((outside / f"b{place}" / "results.jsonl").read_text())["detail"])
    assert details[0] == details[1] and "outside its bound at [0, 3]" in details[0]


# What a person sees


def test_details_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    detail = "is float32[3], [/red] not [bold]float16[/bold]"
    results = [Result("lookup.derive:tokens=1", "lookup.derive", 1, Verdict.FAIL, "device", detail, (), 0.1)]
    console = Console(file=io.StringIO(), width=100)
    assert live.watch(iter(results), 1, "acme", console) == results
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert detail in said and "inferplane conformance run --platform acme lookup.derive:tokens=1" in said


def test_list_and_show_speak_of_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "list", "lookup.derive:tokens=1;"]) == 0
    assert capsys.readouterr().out.splitlines() == [case.id for case in all_cases() if case.id.startswith("lookup.derive:tokens=1;")]
    assert main(["conformance", "show", GOOD_CASE]) == 0
    said = capsys.readouterr().out
    assert f"seed    {Address.parse(GOOD_CASE).seed}" in said and "of 1, 2, 17, 256" in said and replay("PLATFORM", GOOD_CASE) in said


@pytest.mark.parametrize(("arguments", "said"), [
    (["run", "--platform", "refrence"], "platform 'refrence' is not installed. The nearest name is 'reference'"),
    (["run", "--platform", "reference", "linear.plan"], "no case matches 'linear.plan' at all. Did you mean 'linear.plain'"),
    (["run", "--platform", "reference", "--shard", "half"], "--shard half: write K/N"),
    (["list", "--profile", "cores"], "there is no profile 'cores'"),
    (["show", "linear.plain"], "linear.plain has the parameters dtype, m, k"),
])
def test_bad_input_gives_one_clear_message(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", *arguments]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("inferplane: ") and said in found.err and not found.out


# Under pytest


def under_pytest(*arguments: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    from importlib import metadata

    registered = any(entry.value == "inferplane.conformance.pytest_plugin" for entry in metadata.entry_points(group="pytest11"))
    plugin = [] if registered else ["-p", "inferplane.conformance.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "--pyargs", "inferplane.conformance", *plugin, "-p", "no:cacheprovider", "-q", *arguments]
    environment = {"PYTHONPATH": str(path or ""), "INFERPLANE_CACHE": str(folder), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)


def test_the_same_cases_run_under_pytest(tmp_path: Path) -> None:
    done = under_pytest("--platform", "cpu", "--conformance-query", "lookup.derive", folder=tmp_path)
    count = sum(case.family.name == "lookup.derive" for case in all_cases())
    assert f"{count + 1} passed" in done.stdout, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_a_failure_under_pytest_names_the_command_that_replays_it(outside: Path) -> None:
    (outside / "xfail.toml").write_text(entry(GOOD_CASE) + entry("lookup.derive:tokens=9;slots=4;late=some"))
    done = under_pytest("--platform", "troubled", "--conformance-query", GOOD_CASE, folder=outside, path=outside)
    assert "2 failed" in done.stdout and done.returncode == 1
    assert "stale entries in xfail.toml" in done.stdout and replay("troubled", GOOD_CASE) in done.stdout


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "say which platform to prove"), (["--platform", "refrence"], "The nearest name is 'reference'"),
    (["--platform", "reference", "--conformance-query", "lokup"], "no case matches 'lokup'"),
], ids=["no platform", "platform", "query"])
def test_bad_options_end_pytest_in_words(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = under_pytest(*arguments, folder=tmp_path)
    assert done.returncode in (2, 4) and said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and "site-packages" not in done.stdout
