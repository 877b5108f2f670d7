"""A run as files that somebody else can check: results, JUnit XML, environment, verdict, and a hash of each."""
from __future__ import annotations

import hashlib
import json
import platform as machine
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from ..errors import ConfigError
from ..platforms.contract import CONTRACT
from .case import GOOD, Verdict
from .runner import Result
from .select import VERSION, Selection, manifest_hash

RESULTS, JUNIT, ENVIRONMENT, VERDICT, SUMS = "results.jsonl", "junit.xml", "environment.json", "verdict.json", "SHA256SUMS"
PACKAGES = ("inferplane", "numpy", "ml_dtypes", "torch", "triton", "jax", "jaxlib", "libtpu")


@dataclass(frozen=True)
class Judgement:
    """What a set of results amounts to."""

    passed: bool
    certificate: bool
    """Passed, whole, and every result at grade device."""
    counts: dict[str, int]
    grades: dict[str, int]
    reasons: tuple[str, ...]


def judgement(results: Sequence[Result], asked: Sequence[str], stale: Sequence[str]) -> Judgement:
    """Recomputed from results alone: by whoever ran the suite, and by whoever checks the bundle."""
    counts, grades = Counter(str(one.verdict) for one in results), Counter(one.grade for one in results)
    reasons = [f"{one.verdict}: {one.case}" for one in results if one.verdict not in GOOD]
    reasons += [f"stale entry in xfail.toml: {case}" for case in stale]
    told, wanted = Counter(one.case for one in results), set(asked)
    reasons += [f"no result: {case}" for case in asked if not told[case]]
    reasons += [f"{'more than one result' if case in wanted else 'not asked for'}: {case}" for case, n in told.items() if n > 1 or case not in wanted]
    passed = not reasons and counts[Verdict.PASS] > 0
    return Judgement(passed, passed and set(grades) == {"device"}, dict(sorted(counts.items())), dict(sorted(grades.items())), tuple(reasons))


def write(folder: Path, platform: str, results: Sequence[Result], selection: Selection, stale: Sequence[str] = ()) -> Judgement:
    """All files of a bundle, the sums last."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = selection.cases()
    asked = [case.id for case in cases]
    found = judgement(results, asked, stale)
    lines = (json.dumps(asdict(one), sort_keys=True) for one in results)
    (folder / RESULTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / JUNIT).write_bytes(_junit(platform, results))
    environment = {
        "suite": VERSION, "contract": list(CONTRACT), "platform": platform, "selection": asdict(selection), "manifest": manifest_hash(cases),
        "stale": list(stale), "packages": _versions(), "python": machine.python_version(), "machine": machine.platform(),
        "processor": machine.machine(), "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / VERDICT).write_text(json.dumps(asdict(found), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / SUMS).write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in (RESULTS, JUNIT, ENVIRONMENT, VERDICT)), encoding="utf-8")
    return found


@dataclass(frozen=True)
class Bundle:
    """A bundle as it was read."""

    folder: Path
    environment: dict[str, Any]
    results: list[Result]
    judgement: Judgement

    @property
    def platform(self) -> str:
        return str(self.environment["platform"])

    @property
    def selection(self) -> Selection:
        said = self.environment["selection"]
        return Selection(said["profile"], said["quick"], tuple(said["queries"]), tuple(said["shard"]))


def verify(folder: Path) -> Bundle:
    """Read a bundle and recompute all that it claims. Raises `ConfigError` with the first thing that does not hold."""
    _check_sums(folder)
    environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    results = [_result(line) for line in (folder / RESULTS).read_text(encoding="utf-8").splitlines()]
    if environment["suite"] != VERSION:
        raise ConfigError(f"{folder} was made by suite {environment['suite']}, and this is {VERSION}; verify it with that version")
    bundle = Bundle(folder, environment, results, Judgement(False, False, {}, {}, ()))
    cases = bundle.selection.cases()
    if manifest_hash(cases) != environment["manifest"]:
        raise ConfigError(f"{folder} was asked other cases than this suite has for the same selection; verify it with the inferplane that made it "
                          f"({environment['packages'].get('inferplane')})")
    found = judgement(results, [case.id for case in cases], environment["stale"])
    claimed = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
    if claimed != json.loads(json.dumps(asdict(found))):
        raise ConfigError(f"{folder / VERDICT} says otherwise than its results: recomputed {found.counts}, passed {found.passed}, certificate {found.certificate}")
    return Bundle(folder, environment, results, found)


def merge(folders: Sequence[Path], into: Path) -> Judgement:
    """Shards of one selection become one bundle. Raises `ConfigError` where they do not fit together."""
    bundles = [verify(folder) for folder in folders]
    kinds = {(one.platform, one.selection.profile, one.selection.quick, one.selection.queries, one.selection.shard[1]) for one in bundles}
    if len(kinds) != 1:
        raise ConfigError(f"{', '.join(map(str, folders))} are no shards of one run: they differ in platform, selection or number of shards")
    first = bundles[0].selection
    missing = set(range(1, first.shard[1] + 1)) - {one.selection.shard[0] for one in bundles}
    if missing:
        raise ConfigError(f"shards {', '.join(map(str, sorted(missing)))} of {first.shard[1]} are missing")
    whole = Selection(first.profile, first.quick, first.queries)
    order = {case.id: place for place, case in enumerate(whole.cases())}
    results = sorted((result for one in bundles for result in one.results), key=lambda result: order[result.case])
    stale = list(dict.fromkeys(case for one in bundles for case in one.environment["stale"]))
    return write(into, bundles[0].platform, results, whole, stale)


def _check_sums(folder: Path) -> None:
    if not (folder / SUMS).is_file():
        raise ConfigError(f"{folder} is no bundle: it has no {SUMS}")
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        claimed, _, name = line.partition("  ")
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} lacks {name}")
        if _sum(folder / name) != claimed:
            raise ConfigError(f"{folder / name} was changed after the run: its SHA-256 is not the one in {SUMS}; run the suite again")


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _result(line: str) -> Result:
    said = json.loads(line)
    return Result(**{**said, "verdict": Verdict(said["verdict"]), "kernels": tuple(said["kernels"])})


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _junit(platform: str, results: Iterable[Result]) -> bytes:
    results = list(results)
    bad = [one for one in results if one.verdict not in GOOD]
    suite = xml.Element("testsuite", name=f"inferplane.conformance.{platform}", tests=str(len(results)), failures=str(len(bad)))
    for one in results:
        case = xml.SubElement(suite, "testcase", classname=one.feature, name=one.case, time=f"{one.seconds:.4f}")
        if one.verdict not in GOOD:
            xml.SubElement(case, "failure", message=str(one.verdict)).text = _printable(one.detail)
        elif one.verdict != Verdict.PASS:
            xml.SubElement(case, "system-out").text = _printable(f"{one.verdict}: {one.detail}")
    return xml.tostring(suite, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(sign for sign in text if sign in "\t\n" or ord(sign) >= 32)
