"""Which cases a run takes: a profile, quick ones, a query, a shard."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, suggest
from .case import Case
from .cases import FAMILIES, all_cases, find

VERSION = "1.0"
MUSTPASS = Path(__file__).resolve().parent / "mustpass" / VERSION


@dataclass(frozen=True)
class Selection:
    """What was asked for. shard (k, n): every n-th case from the k-th on, 1 <= k <= n."""

    profile: str | None = None
    quick: bool = False
    queries: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)

    def cases(self) -> list[Case]:
        """In the order of the manifest. Raises `ConfigError` where nothing is left."""
        base = self.whole()
        k, n = self.shard
        if not 1 <= k <= n:
            raise ConfigError(f"shard {k}/{n}: write k/n with 1 <= k <= n")
        return base[k - 1 :: n]

    def whole(self) -> list[Case]:
        """All shards together."""
        if self.profile is not None:
            cases: Iterable[Case] = map(find, profile(self.profile))
        else:
            cases = __import__("inferplane.conformance.cases",fromlist=["x"]).quick_cases() if self.quick else all_cases()
        kept = [case for case in cases if not self.queries or any(case.address.matches(query) for query in self.queries)]
        exact = [find(query) for query in self.queries if ":" in query and not kept]
        if not kept and not exact:
            raise ConfigError(f"no case matches {', '.join(self.queries)}. {suggest(self.queries[0].partition(':')[0], FAMILIES)}")
        return kept or exact


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
