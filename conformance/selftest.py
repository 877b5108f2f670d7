"""The suite's own proof: which case kills which planted bug, and whether a legal variant is failed."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from rich.console import Console
from rich.table import Table

from ..errors import ConfigError, PlatformError, PlatformUnavailable, suggest
from ..platforms import registry
from .address import Address
from .case import GOOD, Case, Outcome
from .cases import FAMILIES, find, quick_cases, spread
from .mutants import BUGS, LEGAL, SOURCE_BUGS, Variant
from .oracle import Expected, Oracle
from .rig import Rig

SAMPLE = 40
"""Cases that a legal variant is tried on in a quick self-test."""
HOME = "reference"
"""The platform of most variants, which is always there."""


@dataclass(frozen=True)
class Finding:
    """What became of one planted bug or legal variant: the first case that failed it, and how many were tried."""

    name: str
    source: str
    case: str | None
    detail: str
    tried: int
    seconds: float


@dataclass(frozen=True)
class LeftOut:
    """Planted bugs that could not be tried, since their platform cannot run here: why, and what to do."""

    platform: str
    bugs: int
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything that a self-test found. The suite is sound when no bug survived and no legal variant was failed."""

    quick: bool
    bugs: tuple[Finding, ...]
    legal: tuple[Finding, ...]
    seconds: float
    left_out: tuple[LeftOut, ...] = ()

    @property
    def survivors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.bugs if finding.case is None)

    @property
    def accused(self) -> tuple[Finding, ...]:
        """Legal variants that a case failed."""
        return tuple(finding for finding in self.legal if finding.case is not None)

    @property
    def sound(self) -> bool:
        return not self.survivors and not self.accused


def selftest(
    quick: bool = False, names: Sequence[str] | None = None, progress: Callable[[Finding], None] | None = None, platform: str | None = None,
) -> Report:
    """Run planted bugs until a case kills them, and legal variants on all of their cases (quick: on a sample).

    quick: only the quick cases; bugs of other platforms than the reference get no others, since interpreters are slow. names:
    prefixes of the variants to try (default: all). platform: only its bugs. progress: hears each finding. Raises `ConfigError`
    for a name that is nobody's, `PlatformUnavailable` where nothing of what was asked for can run.
    """
    started, oracle = time.perf_counter(), Remembering()
    bugs, legal = _named((*BUGS, *(bug.variant() for bug in SOURCE_BUGS)), LEGAL, names)
    bugs, legal = ([one for one in variants if platform in (None, one.platform)] for variants in (bugs, legal))
    left_out = _left_out(bugs)
    bugs = [bug for bug in bugs if bug.platform not in {one.platform for one in left_out}]
    if not bugs and not legal:
        raise PlatformUnavailable(" ".join(one.reason for one in left_out) or f"no planted bug is one of platform {platform!r}.")
    listed = {case.id for case in quick_cases()}

    def found(variant: Variant, cases: Sequence[Case]) -> Finding:
        finding = try_out(variant, cases, oracle)
        if progress is not None:
            progress(finding)
        return finding

    def cases(variant: Variant) -> list[Case]:
        return [case for case in cases_of(variant) if case.id in listed or not (quick or variant.platform != HOME)]

    killed = [found(bug, cases(bug)) for bug in bugs]
    passed = [found(variant, cases(variant)[: SAMPLE if quick else None]) for variant in legal]
    passed += [found(*untouched) for untouched in _untouched(bugs, killed)]
    return Report(quick, tuple(killed), tuple(passed), round(time.perf_counter() - started, 2), left_out)


def _left_out(bugs: Sequence[Variant]) -> tuple[LeftOut, ...]:
    """One for each platform that cannot run here."""
    reasons = {}
    for platform in {bug.platform: None for bug in bugs if bug.platform != HOME}:
        try:
            registry.find(platform)
        except PlatformError as error:
            reasons[platform] = str(error)
    return tuple(LeftOut(name, sum(bug.platform == name for bug in bugs), reason) for name, reason in reasons.items())


def _untouched(bugs: Sequence[Variant], killed: Sequence[Finding]) -> Iterator[tuple[Variant, list[Case]]]:
    """Each platform with nothing planted, and the cases that killed a bug of its: one that fails it proves nothing."""
    for name in {bug.platform: None for bug in bugs if bug.platform != HOME}:
        cases = dict.fromkeys(one.case for bug, one in zip(bugs, killed, strict=True) if bug.platform == name and one.case)
        own = Variant(f"nothing.planted_on_{name.partition(':')[0]}", "nothing", "the platform as it is", partial(registry.named, name), ())
        yield own, list(map(find, cases))


def cases_of(variant: Variant) -> list[Case]:
    """The cases that concern it, of all its families in turn; the likely one first."""
    prefixes = tuple(prefix.partition(":")[0] for prefix in variant.families)
    families = [spread(family) for name, family in FAMILIES.items() if name.startswith(prefixes)]
    cases = [case for turn in zip_longest(*families) for case in turn if case is not None and case.id.startswith(variant.families)]
    return sorted(cases, key=lambda case: case.id != variant.likely)


def try_out(variant: Variant, cases: Sequence[Case], oracle: Oracle | None = None) -> Finding:
    """The first of `cases` that does not end well."""
    started, platform = time.perf_counter(), variant.make()
    try:
        with variant.patch():
            rig = Rig(platform, oracle, variant.make)
            for tried, (case, outcome) in enumerate(_outcomes(cases, rig), 1):
                if outcome.verdict not in GOOD:
                    return Finding(variant.name, variant.source, case.id, outcome.detail, tried, round(time.perf_counter() - started, 3))
        return Finding(variant.name, variant.source, None, "", len(cases), round(time.perf_counter() - started, 3))
    finally:
        platform.close()


def _outcomes(cases: Sequence[Case], rig: Rig) -> Iterator[tuple[Case, Outcome]]:
    for case in cases:
        yield case, case.run(rig)


def _named(bugs: Sequence[Variant], legal: Sequence[Variant], names: Sequence[str] | None) -> tuple[list[Variant], list[Variant]]:
    if not names:
        return list(bugs), list(legal)
    for name in names:
        if not any(variant.name.startswith(name) for variant in (*bugs, *legal)):
            raise ConfigError(f"no planted bug and no legal variant is called {name!r}. {suggest(name, [v.name for v in (*bugs, *legal)])}")
    chosen = tuple(names)
    return [v for v in bugs if v.name.startswith(chosen)], [v for v in legal if v.name.startswith(chosen)]


class Remembering(Oracle):
    """Expectations in memory: the bugs of one op are tried on the same cases."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[Address, Expected] = {}

    def kept(self, address: Address, compute: Callable[[], Expected]) -> Expected:
        if address not in self.memory:
            self.memory[address] = compute()
        return self.memory[address]


def show(report: Report, console: Console | None = None) -> None:
    """The table: which case killed which bug, what survived, and which legal variant was failed."""
    console = console or Console()
    killed = len(report.bugs) - len(report.survivors)
    table = Table(title="Planted bugs", title_justify="left", show_edge=False)
    for heading in ("bug", "made before by", "killed by", "after"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "after" else "left")
    for finding in report.bugs:
        table.add_row(finding.name, finding.source, finding.case or "[bold red]survived[/]", str(finding.tried))
    if report.bugs:
        console.print(table)
    for finding in report.accused:
        console.print(f"[bold red]legal, and failed:[/] {finding.name} ({finding.source}) by {finding.case}: {finding.detail}")
    for one in report.left_out:
        console.print(f"[bold yellow]left out:[/] {one.bugs} planted bugs in kernels of {one.platform}. {one.reason}")
    console.print(
        f"{killed} of {len(report.bugs)} planted bugs killed by the {'quick' if report.quick else 'full'} list; "
        f"{len(report.legal) - len(report.accused)} of {len(report.legal)} legal variants passed; {report.seconds:.0f} s"
    )
