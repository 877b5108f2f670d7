"""A case: an address, the family that builds it, and what running it may answer."""
from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggest
from .address import Address
from .covering import covering

if TYPE_CHECKING:
    from ..platforms.contract import KernelCode
    from .rig import Rig


class Verdict(StrEnum):
    """What became of a case. There is no skip."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"
    """The platform raised where it must not, or the suite could not judge."""
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"
    """The platform itself says no, with a reason, and refuses to be bound to it."""
    XFAIL = "xfail"
    """Fails, and the platform's own xfail.toml says so."""
    XPASS = "xpass"
    """Passes although xfail.toml says that it fails: the entry is stale."""
    UNCOMPILED = "uncompiled"
    """Only at grade compiled: what takes it is a library's, and starts no kernel of the platform's own. Nothing was shown."""


GOOD = frozenset({Verdict.PASS, Verdict.UNSUPPORTED, Verdict.XFAIL, Verdict.UNCOMPILED})


@dataclass(frozen=True)
class Outcome:
    """A case's verdict before xfail.toml is consulted, and the reason in words."""

    verdict: Verdict
    detail: str = ""
    kernels: tuple[str, ...] = ()
    codes: tuple[KernelCode, ...] = ()
    """At grade compiled: what its kernels became."""


class Failed(Exception):
    """A check did not hold: the case fails with this text."""


class Unsupported(Exception):
    """The platform's own no, in its own words."""


@dataclass(frozen=True)
class Params:
    """A case's parameters, read by name."""

    values: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def int(self, name: str) -> builtins.int:
        return builtins.int(self.values[name])

    def float(self, name: str) -> builtins.float:
        return builtins.float(self.values[name])

    def flag(self, name: str) -> bool:
        return self.values[name] == "yes"

    def pair(self, name: str) -> tuple[builtins.int, builtins.int]:
        """`32/8` -> (32, 8)."""
        first, _, second = self.values[name].partition("/")
        return builtins.int(first), builtins.int(second or first)


Run = Callable[[Params, Address, "Rig"], tuple[str, ...] | Outcome]
"""Runs one case; names the kernels that took part, or says more in a whole outcome. Raises `Failed` or `Unsupported`."""


@dataclass(frozen=True)
class Family:
    """Cases of one kind: every three of its parameters meet in all their values."""

    name: str
    level: int
    axes: Mapping[str, Sequence[str]]
    run: Run
    valid: Callable[[Params], bool] = lambda params: True
    feature: str = ""
    """The row of the matrix that it stands in; its name unless said otherwise."""

    def cases(self) -> Iterator[Case]:
        if not self.axes:
            yield Case(Address(self.name), self)
            return
        for row in covering(self.axes, lambda row: self.valid(Params(row))):
            yield Case(Address(self.name, tuple(row.items())), self)

    def case(self, address: Address) -> Case:
        """The case of any address of this family, one of the covering array or not."""
        given = address.values
        if list(given) != list(self.axes):
            raise ConfigError(f"{address}: {self.name} has the parameters {', '.join(self.axes)} in this order")
        for name, value in given.items():
            if value not in self.axes[name]:
                raise ConfigError(f"{address}: {name}={value}. {suggest(value, self.axes[name])}")
        if not self.valid(Params(given)):
            raise ConfigError(f"{address}: these parameters do not go together in {self.name}")
        return Case(address, self)


@dataclass(frozen=True)
class Case:
    """One thing that a platform is asked to get right."""

    address: Address
    family: Family

    @property
    def id(self) -> str:
        return str(self.address)

    @property
    def level(self) -> int:
        return self.family.level

    @property
    def feature(self) -> str:
        """Its row of the matrix."""
        return self.family.feature or self.family.name

    def run(self, rig: Rig) -> Outcome:
        """Never raises, except for an interrupt."""
        return outcome_of(lambda: self.family.run(Params(self.address.values), self.address, rig))


def outcome_of(run: Callable[[], tuple[str, ...] | Outcome]) -> Outcome:
    """What became of a run; an interrupt alone goes through."""
    try:
        made = run()
        return made if isinstance(made, Outcome) else Outcome(Verdict.PASS, kernels=made)
    except Unsupported as reason:
        return Outcome(Verdict.UNSUPPORTED, str(reason))
    except Failed as reason:
        return Outcome(Verdict.FAIL, str(reason))
    except (Exception, SystemExit) as error:
        return Outcome(Verdict.ERROR, f"{type(error).__name__}: {error}")
