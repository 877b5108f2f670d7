"""A run as files that somebody else can check: results, JUnit XML, environment, verdict, and a hash of each."""
from __future__ import annotations

import hashlib
import json
import platform as machine
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree as ET

from ..errors import ConfigError
from ..platforms.contract import CONTRACT, KernelCode
from .case import GOOD, Case, Verdict
from .compiled import code_id
from .runner import GRADES, Result, replay
from .select import VERSION, Selection, manifest_hash

RESULTS, JUNIT, ENVIRONMENT, VERDICT, SUMS = "results.jsonl", "junit.xml", "environment.json", "verdict.json", "SHA256SUMS"
KERNELS = "kernels.jsonl"
"""At grade compiled: what kernels became, a line each, by the names that results give."""
PACKAGES = ("inferplane", "numpy", "ml_dtypes", "torch", "triton", "jax", "jaxlib", "libtpu")


@dataclass(frozen=True)
class Judgement:
    """What a set of results amounts to."""

    passed: bool
    certificate: bool
    """Passed, and nothing withholds it."""
    counts: dict[str, int]
    grades: dict[str, int]
    reasons: tuple[str, ...]
    """Why it did not pass."""
    withheld: tuple[str, ...]
    """Why it would be no certificate even so."""


def judgement(results: Sequence[Result], selection: Selection, cases: Sequence[Case], stale: Sequence[str]) -> Judgement:
    """Recomputed from results alone, by whoever ran the suite and by whoever checks the bundle. cases: those of the selection."""
    counts, grades = Counter(str(one.verdict) for one in results), Counter(one.grade for one in results)
    told = Counter(_asked(one.case, one.target) for one in results)
    wanted = dict.fromkeys(_asked(case.id, target) for target in selection.targets or ("",) for case in cases)
    reasons = [f"{one.verdict}: {_asked(one.case, one.target)}" for one in results if one.verdict not in GOOD]
    reasons += [f"stale entry in xfail.toml: {case}" for case in stale]
    reasons += [f"no result: {case}" for case in wanted if not told[case]]
    reasons += [f"{'more than one result' if case in wanted else 'not asked for'}: {case}"
                for case, n in told.items() if n > 1 or case not in wanted]
    if not reasons and not counts[Verdict.PASS]:
        reasons = ["no case passed: the platform refused all of them, or excused them"]
    withheld = [f"of the whole list only {selection.partial}"] if selection.partial else []
    withheld += [f"{n:,} results at grade {grade}" for grade, n in sorted(grades.items()) if grade != GRADES[0]]
    if selection.profile is not None:
        withheld += [f"{n:,} {verdict} in a profile, which must pass" for verdict, n in sorted(counts.items()) if verdict != Verdict.PASS]
    return Judgement(not reasons, not reasons and not withheld, dict(sorted(counts.items())), dict(sorted(grades.items())),
                     tuple(reasons), tuple(withheld))


def _asked(case: str, target: str) -> str:
    return f"{case} on {target}" if target else case


def write(folder: Path, platform: str, results: Sequence[Result], selection: Selection, stale: Sequence[str] = (),
          made_on: Sequence[dict[str, Any]] | None = None, codes: Mapping[str, KernelCode] = MappingProxyType({})) -> Judgement:
    """All files of a bundle, the sums last. made_on: the machines behind the results (default: this one). codes: by name."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = selection.cases()
    found = judgement(results, selection, cases, stale)
    environment = {
        "suite": VERSION, "contract": list(CONTRACT), "platform": platform, "selection": asdict(selection),
        "manifest": manifest_hash(cases), "stale": list(stale),
        "made_on": list(made_on or [_this_machine()]), "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / RESULTS).write_text("".join(f"{json.dumps(asdict(one), sort_keys=True)}\n" for one in results), encoding="utf-8")
    (folder / JUNIT).write_bytes(_junit(platform, results))
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / VERDICT).write_text(json.dumps(asdict(found), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / KERNELS).unlink(missing_ok=True)
    if selection.targets:
        lines = (json.dumps({"id": name, **asdict(code)}, sort_keys=True) + "\n" for name, code in sorted(codes.items()))
        (folder / KERNELS).write_text("".join(lines), encoding="utf-8")
    sums = "".join(f"{_sum(folder / name)}  {name}\n" for name in _files(folder))
    (folder / SUMS).write_text(sums, encoding="utf-8")
    return found


@dataclass(frozen=True)
class Bundle:
    """A bundle that holds what it claims."""

    folder: Path
    platform: str
    selection: Selection
    environment: dict[str, Any]
    results: list[Result]
    judgement: Judgement
    codes: dict[str, KernelCode] = field(default_factory=dict)
    """At grade compiled: what kernels became, by name."""


def _files(folder: Path) -> tuple[str, ...]:
    return (RESULTS, JUNIT, ENVIRONMENT, VERDICT, *([KERNELS] if (folder / KERNELS).is_file() else []))


def verify(folder: Path) -> Bundle:
    """Read a bundle and recompute all that it claims. Raises `ConfigError` with the first thing that does not hold."""
    _check_sums(folder)
    path = folder / ENVIRONMENT
    environment = _read(path, json.loads)
    suite, platform, manifest, stale, made_with = _read(path, lambda _: (
        *(environment[name] for name in ("suite", "platform", "manifest", "stale")),
        environment["made_on"][0]["packages"].get("inferplane")))
    if suite != VERSION:
        raise ConfigError(f"{folder} was made by suite {suite}, and this is {VERSION}; verify it with inferplane {made_with}")
    selection = _read(path, lambda _: Selection(
        **environment["selection"] | {name: tuple(environment["selection"].get(name, ())) for name in ("queries", "shard", "targets")}))
    cases = selection.cases()
    if manifest_hash(cases) != manifest:
        raise ConfigError(f"{folder} was asked other cases than this suite has for the same selection; "
                          f"verify it with inferplane {made_with}")
    results = _read(folder / RESULTS, lambda text: [_result(line) for line in text.splitlines()])
    known = {case.id: case for case in cases}
    for one in results:
        if one.case in known and (one.feature, one.level) != (known[one.case].feature, known[one.case].level):
            raise ConfigError(f"{folder / RESULTS} tells {one.case} as {one.feature}, level {one.level}, which it is not")
    codes = _read(folder / KERNELS, lambda text: dict(map(_code, text.splitlines()))) if (folder / KERNELS).is_file() else {}
    _check_codes(folder, results, codes)
    found = judgement(results, selection, cases, stale)
    if _read(folder / VERDICT, json.loads) != json.loads(json.dumps(asdict(found))):
        raise ConfigError(f"{folder / VERDICT} says otherwise than its results: recomputed {found.counts}, passed {found.passed}, "
                          f"certificate {found.certificate}{''.join(f'; {reason}' for reason in found.reasons[:3])}")
    if (folder / JUNIT).read_bytes() != _junit(platform, results):
        raise ConfigError(f"{folder / JUNIT} says otherwise than {RESULTS}; run the suite again")
    return Bundle(folder, platform, selection, environment, results, found, codes)


def merge(folders: Sequence[Path], into: Path) -> Judgement:
    """Shards of one selection become one bundle. Raises `ConfigError` where they do not fit together."""
    bundles = [verify(folder) for folder in folders]
    first = bundles[0]
    whole = replace(first.selection, shard=(1, 1))
    count = first.selection.shard[1]
    asked = [(one.platform, replace(one.selection, shard=(1, 1)), one.selection.shard[1]) for one in bundles]
    if any(one != (first.platform, whole, count) for one in asked):
        raise ConfigError(f"{', '.join(map(str, folders))} are no shards of one run: "
                          "they differ in platform, selection or number of shards")
    shards = Counter(one.selection.shard[0] for one in bundles)
    if wrong := [k for k in range(1, count + 1) if shards[k] != 1]:
        raise ConfigError(f"of {count} shards each is needed once; missing or given twice: {', '.join(map(str, wrong))}")
    order = {case.id: place for place, case in enumerate(whole.cases())}
    results = sorted((result for one in bundles for result in one.results), key=lambda result: (
        whole.targets.index(result.target) if result.target else 0, order.get(result.case, len(order))))
    stale = dict.fromkeys(case for one in bundles for case in one.environment["stale"])
    made_on = [made for one in bundles for made in one.environment["made_on"]]
    distinct = [made for place, made in enumerate(made_on) if made not in made_on[:place]]
    codes = {name: code for one in bundles for name, code in one.codes.items()}
    return write(into, first.platform, results, whole, list(stale), distinct, codes)


def _check_codes(folder: Path, results: Sequence[Result], codes: Mapping[str, KernelCode]) -> None:
    """A result's verdict is the one that its kernels' figures give, and every kernel is some result's."""
    for one in results:
        own = [codes[name] for name in one.codes if name in codes and codes[name].target == one.target]
        said = Verdict.FAIL if any(code.reason for code in own) else Verdict.PASS if own else Verdict.UNCOMPILED
        if len(own) != len(one.codes) or (own and said != one.verdict) or (one.target and not own and one.verdict == Verdict.PASS):
            raise ConfigError(f"{folder / RESULTS} tells {_asked(one.case, one.target)} as {one.verdict}, and {KERNELS} says {said}")
    if strangers := codes.keys() - {name for one in results for name in one.codes}:
        raise ConfigError(f"{folder / KERNELS} holds {len(strangers)} kernels that no result names, such as {min(strangers)}")


def _check_sums(folder: Path) -> None:
    """The list of sums is exactly the one that these files have."""
    if not (folder / SUMS).is_file():
        raise ConfigError(f"{folder} is no bundle: it has no {SUMS}")
    files = _files(folder)
    claimed = (folder / SUMS).read_bytes().splitlines(keepends=True)
    for name in files:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} lacks {name}")
        if f"{_sum(folder / name)}  {name}\n".encode() not in claimed:
            raise ConfigError(f"{folder / name} was changed after the run: its SHA-256 is not the one in {SUMS}; run the suite again")
    if len(claimed) != len(files):
        raise ConfigError(f"{folder / SUMS} was changed after the run: it lists other files than a bundle has")


def _read(path: Path, take: Callable[[str], Any]) -> Any:
    try:
        return take(path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(f"{path} is not as the suite writes it: {type(error).__name__}: {error}") from None


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _result(line: str) -> Result:
    said = json.loads(line)
    if said["grade"] not in GRADES:
        raise ValueError(f"grade {said['grade']!r}")
    return Result(**{**said, "verdict": Verdict(said["verdict"]), "kernels": tuple(said["kernels"]), "codes": tuple(said.get("codes", ()))})


def _code(line: str) -> tuple[str, KernelCode]:
    said = json.loads(line)
    name = said.pop("id")
    code = KernelCode(**said)
    if name != code_id(code):
        raise ValueError(f"{name} is not the name of {code.kernel} with these arguments")
    return name, code


def _this_machine() -> dict[str, Any]:
    system, processor = machine.system(), machine.machine()
    return {"packages": _versions(), "python": machine.python_version(), "machine": f"{system} {processor}", "processor": processor}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _junit(platform: str, results: Sequence[Result]) -> bytes:
    """Each failure with the command that replays it; each refusal, excuse or measurement with its words."""
    counts = Counter(one.verdict for one in results)
    failures, errors = counts[Verdict.FAIL] + counts[Verdict.XPASS], counts[Verdict.ERROR] + counts[Verdict.TIMEOUT]
    suite = ET.Element("testsuite", name=f"inferplane.conformance.{platform}", tests=str(len(results)),
                       failures=str(failures), errors=str(errors))
    for one in results:
        case = ET.SubElement(suite, "testcase", classname=one.feature, name=_asked(one.case, one.target), time=f"{one.seconds:.4f}")
        if one.verdict not in GOOD:
            kind = "error" if one.verdict in (Verdict.ERROR, Verdict.TIMEOUT) else "failure"
            ET.SubElement(case, kind, message=str(one.verdict)).text = _printable(f"{one.detail}\n{replay(platform, one.case, one.target)}")
        elif one.verdict != Verdict.PASS or one.detail:
            ET.SubElement(case, "system-out").text = _printable(f"{one.verdict}: {one.detail}")
    return ET.tostring(suite, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(sign for sign in text
                   if sign in "\t\n" or 32 <= ord(sign) < 0xD800 or 0xE000 <= ord(sign) < 0xFFFE or ord(sign) > 0xFFFF)
