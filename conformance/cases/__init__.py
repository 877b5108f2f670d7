"""The families of cases, one file per kind, in the order of their levels."""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations

from ...errors import ConfigError, suggest
from ..address import Address
from ..case import Case, Family
from . import (
    attention,
    contract,
    elementwise,
    engine,
    exchange,
    experts,
    far,
    graph,
    linear,
    lookup,
    norm,
    parallel,
    prefixes,
    quantized,
    roofline,
    rope,
    sample,
    state,
    steps,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (
        contract, steps, lookup, elementwise, norm, rope, linear, quantized, experts, sample, state, attention, far, graph, parallel,
        engine, prefixes, exchange, roofline,
    )
    for family in module.FAMILIES
}


SPEED = 5
"""The level whose cases are measurements: they need a machine to themselves, and run only when asked for."""
PROVING = tuple(family for family in FAMILIES.values() if family.level != SPEED)


@cache
def all_cases() -> tuple[Case, ...]:
    """Everything that is right or wrong: levels 0 to 4."""
    return tuple(case for family in PROVING for case in family.cases())


def speed_cases() -> list[Case]:
    return [case for family in FAMILIES.values() if family.level == SPEED for case in family.cases()]


QUICK = 40
"""Cases of a family in the quick list, unless said otherwise."""
QUICK_MORE = {
    "linear.plain": 100, "linear.int8": 80, "linear.int4": 80, "linear.fp8": 80, "sample.draw": 100, "rope.plain": 80, "kv.write": 80,
    "experts.moe": 60, "graph.quantized": 20, "parallel.sums": 12, "parallel.tokens": 8,
} | {f"attention.{kind}.features": 80 for kind in attention.ROWS}


def spread(family: Family) -> list[Case]:
    """All its cases, those first whose seeds are smallest: any head of the list is a sample over all of its parameters."""
    return sorted(family.cases(), key=lambda case: case.address.seed)


@cache
def quick_cases() -> tuple[Case, ...]:
    """A fixed sample of each family, chosen by seed: a new case displaces at most one other."""
    return tuple(case for family in PROVING for case in spread(family)[: QUICK_MORE.get(family.name, QUICK)])


@cache
def covering_cases(strength: int) -> tuple[Case, ...]:
    """Of each family in the order of its seeds, what brings values of `strength` parameters together that had not met."""
    return tuple(case for family in PROVING for case in _meeting(family, strength))


def _meeting(family: Family, strength: int) -> Iterator[Case]:
    met: set[tuple[tuple[str, str], ...]] = set()
    for case in spread(family):
        together = set(combinations(case.address.params, min(strength, len(family.axes))))
        if not together <= met:
            met |= together
            yield case


def find(address: str) -> Case:
    """The case of an address, one of the manifest or not."""
    parsed = Address.parse(address)
    if parsed.family not in FAMILIES:
        raise ConfigError(f"there is no family of cases {parsed.family!r}. {suggest(parsed.family, FAMILIES)}")
    return FAMILIES[parsed.family].case(parsed)
