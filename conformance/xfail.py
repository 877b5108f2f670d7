"""Known failures: a platform's own xfail.toml, by exact case, with a reason and a day on which the excuse ends."""
from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..platforms.contract import Platform
from .case import Outcome, Verdict

FILE = "xfail.toml"


@dataclass(frozen=True)
class Excuse:
    """One entry of xfail.toml."""

    case: str
    reason: str
    expires: date


def excuses(platform: type[Platform]) -> dict[str, Excuse]:
    """What the package of this platform excuses, by case. Raises `ConfigError` for entries that say too little."""
    path = Path(inspect.getfile(platform)).parent / FILE
    if not path.is_file():
        return {}
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    entries = said.get("xfail", [])
    if said.keys() - {"xfail"} or not isinstance(entries, list):
        raise ConfigError(f"{path} has {', '.join(said)}, and must have nothing but entries that begin with [[xfail]]")
    found: dict[str, Excuse] = {}
    for entry in entries:
        excuse = _excuse(entry)
        if excuse is None:
            raise ConfigError(f"{path}: {entry} needs case (an exact address), reason (a sentence) and expires (a date such as 2027-06-30)")
        if excuse.case in found:
            raise ConfigError(f"{path} excuses {excuse.case} twice; keep one entry")
        found[excuse.case] = excuse
    return found


def _excuse(entry: Any) -> Excuse | None:
    match entry:
        case {"case": str(case), "reason": str(reason), "expires": date() as day} if (
                len(entry) == 3 and type(day) is date and len(reason.strip()) >= 10):
            return Excuse(case, reason, day)
        case _:
            return None


def excused(outcome: Outcome, excuse: Excuse | None, today: date) -> Outcome:
    """The verdict once the excuse is heard. One that has expired excuses nothing; one that is not needed is a fault."""
    if excuse is None:
        return outcome
    if outcome.verdict is Verdict.PASS:
        return Outcome(Verdict.XPASS, f"passes, and {FILE} says it fails ({excuse.reason}); remove the entry", outcome.kernels)
    if outcome.verdict is not Verdict.FAIL and outcome.verdict is not Verdict.ERROR:
        return outcome
    if today > excuse.expires:
        expired = f"the excuse in {FILE} expired on {excuse.expires}: {excuse.reason}"
        return Outcome(outcome.verdict, f"{outcome.detail} [{expired}]", outcome.kernels)
    return Outcome(Verdict.XFAIL, f"{excuse.reason} (until {excuse.expires}): {outcome.detail}", outcome.kernels)


def stale(known: Mapping[str, Excuse], cases: Iterable[str], refused: Iterable[str] = ()) -> list[str]:
    """Excused addresses that no case has, or that the platform `refused`: each fails a run."""
    existing, needless = set(cases), set(refused)
    return [case for case in known if case not in existing or case in needless]
