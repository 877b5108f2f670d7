"""A bundle in a few kilobytes, for a repository to keep: counts by feature, and what kernels took of each chip."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..platforms.contract import KernelCode
from .bundle import Bundle, Judgement
from .case import GOOD, Verdict
from .runner import GRADES, Result

SHOWN_FAILURES = 25
RESULTS = Path(__file__).resolve().parent / "results"
"""Summaries of the runs that this project shows."""


@dataclass(frozen=True)
class KernelSummary:
    """One kernel on one chip, over all of its configurations; registers and spills are those of one thread, at most."""

    kernel: str
    target: str
    configurations: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    refused: int
    """Configurations that cannot serve: they spill, are over a budget, or do not compile."""


@dataclass(frozen=True)
class Summary:
    """What the matrix shows of a bundle. rows: {column: {feature: (level, weakest grade, {verdict: count})}}."""

    platform: str
    environment: dict[str, Any]
    judgement: Judgement
    rows: dict[str, dict[str, tuple[int, str, dict[str, int]]]]
    failures: dict[str, list[Result]]
    """The first of each column."""
    kernels: tuple[KernelSummary, ...]


def column_of(platform: str, target: str) -> str:
    """A platform's column of the matrix; at grade compiled it has one for each chip."""
    return f"{platform} {target}" if target else platform


def kernels_of(codes: Iterable[KernelCode]) -> tuple[KernelSummary, ...]:
    """By kernel, then by chip."""
    found: dict[tuple[str, str], list[KernelCode]] = {}
    for code in codes:
        found.setdefault((code.kernel, code.target), []).append(code)
    return tuple(_summed(kernel, target, own) for (kernel, target), own in sorted(found.items()))


def _summed(kernel: str, target: str, own: Sequence[KernelCode]) -> KernelSummary:
    return KernelSummary(
        kernel, target, len(own), max(one.registers for one in own), max(one.shared_bytes for one in own),
        max(one.spilled_bytes for one in own), sum(bool(one.reason) for one in own),
    )


def summary_of(bundle: Bundle) -> Summary:
    columns = {column_of(bundle.platform, target): [one for one in bundle.results if one.target == target]
               for target in bundle.selection.targets or ("",)}
    failures = {column: [one for one in results if one.verdict not in GOOD][:SHOWN_FAILURES] for column, results in columns.items()}
    environment = {name: bundle.environment[name] for name in ("suite", "written", "manifest", "selection")}
    made_on = [{name: one[name] for name in ("machine", "python", "packages")} for one in bundle.environment["made_on"]]
    return Summary(bundle.platform, environment | {"made_on": made_on}, bundle.judgement,
                   {column: _rows(results) for column, results in columns.items()}, failures, kernels_of(bundle.codes.values()))


def _rows(results: Sequence[Result]) -> dict[str, tuple[int, str, dict[str, int]]]:
    features: dict[str, list[Result]] = {}
    for one in results:
        features.setdefault(one.feature, []).append(one)
    return {feature: (own[0].level, max((one.grade for one in own), key=GRADES.index), dict(Counter(str(one.verdict) for one in own)))
            for feature, own in sorted(features.items())}


def save(path: Path, bundle: Bundle) -> None:
    """One line for each feature and kernel, so that changes can be read."""
    told = asdict(summary_of(bundle))
    kernels, rows = told.pop("kernels"), told.pop("rows")
    text = json.dumps(told, indent=1)[:-2]
    for name, lines in (("kernels", [json.dumps(one) for one in kernels]), *(
            (f"rows {column}", [json.dumps([feature, *row]) for feature, row in own.items()]) for column, own in rows.items())):
        text += f",\n {json.dumps(name)}: [" + ",".join(f"\n  {line}" for line in lines) + "]"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n", encoding="utf-8")


def read(path: Path) -> Summary:
    """Raises `ConfigError` for a file that is no summary."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = told["judgement"]
        judgement = Judgement(**found | {name: tuple(found[name]) for name in ("reasons", "withheld")})
        rows = {name.removeprefix("rows "): {feature: (level, grade, counts) for feature, level, grade, counts in own}
                for name, own in told.items() if name.startswith("rows ")}
        failures = {column: [Result(**one | {"verdict": Verdict(one["verdict"])}) for one in own]
                    for column, own in told["failures"].items()}
        return Summary(told["platform"], told["environment"], judgement, rows, failures,
                       tuple(KernelSummary(**one) for one in told["kernels"]))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a bundle's folder or a summary") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no summary of a bundle: {type(error).__name__}: {error}. "
                          "Write one with: inferplane conformance summary BUNDLE -o FILE") from None
