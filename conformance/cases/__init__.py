"""The families of cases, one file per kind, in the order of their levels."""
from __future__ import annotations

from collections.abc import Iterator

from ...errors import ConfigError, suggest
from ..address import Address
from ..case import Case, Family
from . import attention, elementwise, experts, lookup, linear, norm, rope, sample, state

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (lookup, elementwise, norm, rope, linear, experts, sample, state, attention)
    for family in module.FAMILIES
}


def all_cases() -> Iterator[Case]:
    for family in FAMILIES.values():
        yield from family.cases()


def find(address: str) -> Case:
    """The case of an address, one of the manifest or not."""
    parsed = Address.parse(address)
    if parsed.family not in FAMILIES:
        raise ConfigError(f"there is no family of cases {parsed.family!r}. {suggest(parsed.family, FAMILIES)}")
    return FAMILIES[parsed.family].case(parsed)
