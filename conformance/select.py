"""Which cases a run takes: a profile, quick ones, a query, a shard."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError, suggest
from .address import WILDCARDS
from .case import Case
from .cases import FAMILIES, all_cases, covering_cases, find, quick_cases, speed_cases
from .cases.make import Judged

VERSION = "1.0"
MUSTPASS = Path(__file__).resolve().parent / "mustpass" / VERSION


@dataclass(frozen=True)
class Selection:
    """What was asked for. shard (k, n): every n-th case from the k-th on, 1 <= k <= n. covering: see `covering_cases`; 0: all.

    targets: chips that kernels are compiled for; where there are any, cases are those of ops, and each counts once a target.
    """

    profile: str | None = None
    quick: bool = False
    queries: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)
    covering: int = 0
    targets: tuple[str, ...] = ()

    def for_grade(self, grade: str) -> Selection:
        """What is interpreted, emulated or compiled takes, for the quick list, the cases in which each value of each parameter occurs."""
        return self if grade == "device" or not self.quick else replace(self, quick=False, covering=1)

    @property
    def partial(self) -> str:
        """What it leaves out of a whole list, in words; empty where nothing."""
        parts = ["the quick list"] * self.quick + [f"cases in which any {self.covering} of the parameters meet"] * bool(self.covering)
        parts += [f"what {' '.join(self.queries)} finds"] * bool(self.queries)
        return ", ".join([*parts, *[f"shard {self.shard[0]}/{self.shard[1]}"] * (self.shard != (1, 1))])

    def cases(self) -> list[Case]:
        """In the order of the manifest. Raises `ConfigError` where nothing is left."""
        k, n = self.shard
        if not 1 <= k <= n:
            raise ConfigError(f"shard {k}/{n}: write k/n with 1 <= k <= n")
        whole = self.whole()
        if not whole[k - 1 :: n]:
            raise ConfigError(f"shard {k}/{n} is empty: {len(whole)} cases were asked for; take fewer shards")
        return whole[k - 1 :: n]

    def whole(self) -> list[Case]:
        """All shards together. Each query must find something. Raises `ConfigError` where nothing is left."""
        cases = self._listed()
        if not self.targets:
            return cases
        if not (of_ops := [case for case in cases if isinstance(case.family.run, Judged)]):
            raise ConfigError("grade compiled takes cases of ops (levels 1 and 2), and none was asked for; name a family such as attention")
        return of_ops

    def _listed(self) -> list[Case]:
        """quick, covering: of a profile, what is on that list too."""
        cases = list(map(find, profile(self.profile))) if self.profile else list(all_cases())
        for chosen in [quick_cases()] * self.quick + [covering_cases(self.covering)] * bool(self.covering):
            kept = {case.id for case in chosen}
            cases = [case for case in cases if case.id in kept]
        if not self.queries:
            return cases
        found = {case.id: case for query in self.queries for case in self._asked(query, cases)}
        return [case for case in cases if found.pop(case.id, None)] + list(found.values())

    def _asked(self, query: str, cases: Sequence[Case]) -> list[Case]:
        """Of `cases`; else, without a profile, measurements, or the one case of an address that is on no list."""
        for listed in (cases, () if self.profile else speed_cases()):
            if kept := [case for case in listed if case.address.matches(query)]:
                return kept
        if self.profile is None and ":" in query and not any(sign in query for sign in WILDCARDS):
            return [find(query)]
        where = "among these" if self.covering else "in the quick list" if self.quick else "at all"
        where = f"in the profile {self.profile}" if self.profile else where
        raise ConfigError(f"no case matches {query!r} {where}. {suggest(query.partition(':')[0], FAMILIES)}")


def profiles() -> list[str]:
    return sorted(path.stem for path in MUSTPASS.glob("*.txt"))


def profile(name: str) -> list[str]:
    """The frozen addresses of a profile; `core` and `core-1.0` are the same."""
    path = MUSTPASS / f"{name.removesuffix(f'-{VERSION}')}.txt"
    if not path.is_file():
        raise ConfigError(f"there is no profile {name!r} in {VERSION}. {suggest(name, profiles())}")
    return path.read_text(encoding="utf-8").split()


def manifest_hash(cases: Sequence[Case]) -> str:
    """SHA-256 over the addresses: two runs with equal hashes were asked the same."""
    return hashlib.sha256("\n".join(sorted(case.id for case in cases)).encode()).hexdigest()
