"""Known failures: a platform's own xfail.toml, by exact case, with a reason and a day on which the excuse ends."""
from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

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
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("xfail", [])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    found = {}
    for entry in entries:
        if set(entry) != {"case", "reason", "expires"} or not isinstance(entry["expires"], date) or len(str(entry["reason"]).strip()) < 10:
            raise ConfigError(f"{path}: {entry} needs case (an exact address), reason (a sentence) and expires (a date such as 2027-06-30)")
        found[entry["case"]] = Excuse(entry["case"], str(entry["reason"]), entry["expires"])
    return found


def excused(outcome: Outcome, excuse: Excuse | None, today: date) -> Outcome:
    """The verdict once the excuse is heard. One that has expired excuses nothing; one that is not needed is a fault."""
    if excuse is None:
        return outcome
    if outcome.verdict is Verdict.PASS:
        return Outcome(Verdict.XPASS, f"passes, and {FILE} says it fails ({excuse.reason}); remove the entry", outcome.kernels)
    if outcome.verdict is not Verdict.FAIL and outcome.verdict is not Verdict.ERROR:
        return outcome
    if today > excuse.expires:
        return Outcome(outcome.verdict, f"{outcome.detail} [the excuse in {FILE} expired on {excuse.expires}: {excuse.reason}]", outcome.kernels)
    return Outcome(Verdict.XFAIL, f"{excuse.reason} (until {excuse.expires}): {outcome.detail}", outcome.kernels)


def stale(known: Mapping[str, Excuse], cases: Iterable[str]) -> list[str]:
    """Excused addresses that no case has: each fails a run."""
    existing = set(cases)
    return [case for case in known if case not in existing]
