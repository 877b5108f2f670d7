"""Addresses and their seeds, covering arrays, and which cases a run takes."""
from __future__ import annotations

from dataclasses import replace
from itertools import combinations, islice, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferplane.conformance.address import Address
from inferplane.conformance.case import Family, Params
from inferplane.conformance.cases import FAMILIES, all_cases, find, quick_cases, speed_cases
from inferplane.conformance.covering import STRENGTH, covering
from inferplane.conformance.select import Selection, manifest_hash, profile
from inferplane.errors import ConfigError

# Addresses

WORD = st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True)
VALUE = st.from_regex(r"[A-Za-z0-9_./+-]{1,8}", fullmatch=True)
ADDRESS = st.builds(
    lambda family, params: Address(".".join(family), tuple(params.items())),
    st.lists(WORD, min_size=1, max_size=3), st.dictionaries(WORD, VALUE, max_size=5),
)


@given(ADDRESS)
def test_an_address_reads_back_as_it_was_written(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(ADDRESS, ADDRESS)
def test_seeds_differ_where_addresses_do(one: Address, other: Address) -> None:
    assert (one.seed == other.seed) == (one == other)


def test_seeds_never_change() -> None:
    """Whoever changes them changes every case of a frozen profile."""
    assert Address.parse("contract.name").seed == 16254965769159072428
    address = Address.parse("linear.plain:dtype=bfloat16;m=17;k=33;n=65;outputs=2;bias=yes;out=same;values=cancel")
    assert address.seed == 1256124359767961987
    assert address.random().integers(2**32, size=2).tolist() == [1059910182, 1144008928]


@pytest.mark.parametrize("text", [
    "", ":", "Linear:m=1", "linear:m", "linear:m=", "linear:=1", "linear:m=1;;k=2", "linear:m=1 2", "lin ear", "a..b", "linear:m=1;",
])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no case address; one looks like linear\.plain:dtype=float32;m=17"):
        Address.parse(text)


def test_an_address_says_each_parameter_once() -> None:
    with pytest.raises(ConfigError, match="says a parameter twice"):
        Address.parse("lookup.derive:tokens=1;slots=1;late=none;tokens=2")


@pytest.mark.parametrize(("query", "matches"), [
    ("lookup", True), ("lookup.derive:tokens=1;", True), ("lookup.derive:tokens=17", False), ("*", True), ("*slots=4*", True),
    ("lookup.*", True), ("*.derive", False), ("lookup.derive:tokens=?;*", True), ("look?", False),
])
def test_a_query_is_a_prefix_or_a_pattern_over_the_whole(query: str, matches: bool) -> None:
    assert Address.parse("lookup.derive:tokens=1;slots=4;late=none").matches(query) == matches


# Covering arrays


@given(st.lists(st.integers(1, 7), max_size=7))
def test_every_three_parameters_meet_in_all_their_values(sizes: list[int]) -> None:
    axes = {f"p{place}": [str(value) for value in range(size)] for place, size in enumerate(sizes)}
    rows = covering(axes)
    assert rows == covering(axes) and all(list(row) == list(axes) for row in rows)
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    for names in combinations(axes, min(STRENGTH, len(axes))):
        met = {tuple(row[name] for name in names) for row in rows}
        assert met == set(product(*(axes[name] for name in names))), names


def test_a_covering_array_is_far_smaller_than_the_product() -> None:
    axes = {f"p{place}": "0123456789" for place in range(8)}
    assert len(covering(axes)) <= 11**3


def test_an_axis_without_values_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no values"):
        covering({"a": (), "b": ("1",)})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_cases_of_a_family_meet_in_every_three_values_that_go_together(family: Family) -> None:
    """What `valid` removes from the covering array must not take a triple with it that some valid case could have had."""
    rows = [dict(case.address.params) for case in family.cases()]
    assert rows or not family.axes
    if len(rows) == len(covering(family.axes)):
        return
    for names in combinations(family.axes, min(STRENGTH, len(family.axes))):
        met = {tuple(row[name] for name in names) for row in rows}
        for triple in set(product(*(family.axes[name] for name in names))) - met:
            free = {name: values for name, values in family.axes.items() if name not in names}
            chosen = dict(zip(names, triple, strict=True))
            others = (chosen | dict(zip(free, row, strict=True)) for row in islice(product(*free.values()), 2000))
            assert not any(family.valid(Params({name: row[name] for name in family.axes})) for row in others), chosen


# Finding and selecting


def test_every_case_is_found_by_its_address() -> None:
    for case in (*list(all_cases())[::97], *speed_cases()):
        assert find(case.id) == case
    for family in FAMILIES.values():
        assert all(Address.parse(f"{family.name}:{name}={value}") for name, axis in family.axes.items() for value in axis)
    assert len({case.id for case in all_cases()}) == len(all_cases()) >= 12_000


@pytest.mark.parametrize(("address", "told"), [
    ("linear.plane:m=1", "there is no family of cases 'linear.plane'. Did you mean 'linear.plain'"),
    ("lookup.derive:tokens=1;slots=1", "lookup.derive has the parameters tokens, slots, late in this order"),
    ("lookup.derive:slots=1;tokens=1;late=none", "has the parameters tokens, slots, late in this order"),
    ("lookup.derive:tokens=3;slots=1;late=none", "tokens=3. Known: 1, 17, 2, 256."),
    ("lookup.derive:tokens=1;slots=1;late=sone", "late=sone. Did you mean"),
    ("activation.plain:dtype=float16;shape=1x7;values=small;kind=silu", ""),
    ("activation.gated:dtype=float16;shape=1x7;values=small;kind=silu", "these parameters do not go together in activation.gated"),
], ids=["family", "missing", "order", "value", "misspelled", "fine", "invalid"])
def test_an_address_that_no_case_has_is_refused_with_what_is_known(address: str, told: str) -> None:
    if not told:
        assert find(address).id == address
        return
    with pytest.raises(ConfigError) as caught:
        find(address)
    assert told in str(caught.value)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_shards_partition_the_manifest(n: int) -> None:
    whole = Selection(queries=("lookup.derive", "kv.blocks:dtype=float32;heads=1;*"))
    parts = [replace(whole, shard=(k, n)).cases() for k in range(1, n + 1)]
    assert sorted(case.id for part in parts for case in part) == sorted(case.id for case in whole.cases())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (-1, 1)])
def test_an_impossible_shard_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"write k/n with 1 <= k <= n"):
        Selection(shard=shard).cases()


def test_an_empty_shard_is_refused() -> None:
    with pytest.raises(ConfigError, match="shard 2/2 is empty: 1 cases were asked for"):
        Selection(queries=("contract.name",), shard=(2, 2)).cases()


def test_queries_are_a_union_in_the_order_of_the_manifest() -> None:
    asked = Selection(queries=("lookup.derive", "contract.name", "lookup.derive:tokens=1"))
    wanted = [case.id for case in all_cases() if case.id.startswith(("contract.name", "lookup.derive"))]
    assert [case.id for case in asked.cases()] == wanted


def test_each_query_must_find_something() -> None:
    for queries in (("lookup.deriv*x",), ("lookup.derive", "norm.rns")):
        with pytest.raises(ConfigError, match=f"no case matches {queries[-1]!r}".replace("*", r"\*")):
            Selection(queries=queries).cases()
    with pytest.raises(ConfigError, match="no case matches 'engine' in the profile experts"):
        Selection(profile="experts", queries=("engine",)).cases()


def test_an_address_on_no_list_can_be_asked_for_beside_others() -> None:
    listed = {case.id for case in all_cases()}
    one = next(case for case in FAMILIES["linear.plain"].cases() if case.address.values["k"] == "257")
    rare = next(made for k in one.family.axes["k"] if (made := one.id.replace("k=257", f"k={k}")) not in listed)
    assert [case.id for case in Selection(queries=("contract.name", rare)).cases()] == ["contract.name", rare]


def test_a_profile_and_its_quick_part() -> None:
    listed = [case.id for case in Selection("core").cases()]
    assert listed == [case.id for case in Selection("core-1.0").cases()] == profile("core")
    quick = {case.id for case in quick_cases()}
    assert [case.id for case in Selection("core", quick=True).cases()] == [case for case in listed if case in quick]
    with pytest.raises(ConfigError, match=r"there is no profile 'cor' in 1\.0. Did you mean 'core'"):
        Selection("cor").cases()


def test_the_quick_list_is_a_part_of_the_full_one_with_every_family() -> None:
    full = {case.id for case in all_cases()}
    assert {case.id for case in quick_cases()} < full
    assert {case.family.name for case in quick_cases()} == {case.family.name for case in all_cases()}


@pytest.mark.parametrize("strength", [1, 2])
def test_a_covering_list_holds_all_that_the_full_one_has_of_so_many_parameters_together(strength: int) -> None:
    chosen = Selection(queries=("norm.rms", "kv.write"), covering=strength).cases()
    whole = Selection(queries=("norm.rms", "kv.write")).cases()
    met, all_ = ({(case.family.name, *some) for case in cases for some in combinations(case.address.params, strength)}
                 for cases in (chosen, whole))
    assert met == all_
    assert len(chosen) < len(whole) / 3


def test_under_an_interpreter_the_quick_list_covers_each_value_once_and_a_bundle_says_so() -> None:
    quick = Selection(quick=True)
    assert quick.for_grade("device") == quick
    assert quick.for_grade("interpreted") == Selection(covering=1)
    assert "any 1 of the parameters" in quick.for_grade("interpreted").partial
    assert Selection("core").for_grade("interpreted") == Selection("core")


def test_a_manifest_s_hash_is_of_its_addresses_in_any_order() -> None:
    cases = Selection(queries=("lookup.derive",)).cases()
    assert manifest_hash(cases) == manifest_hash(cases[::-1]) != manifest_hash(cases[1:])
