"""Covering arrays: few rows in which any three parameters meet in all their values."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np

STRENGTH = 3
Row = dict[str, str]


def covering(axes: Mapping[str, Sequence[str]], valid: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Valid rows over `axes` in which every triple of values occurs that any valid row has; the same rows each time."""
    array = _array(axes)
    rows = [row for row in array if valid(row)]
    if len(rows) < len(array):
        met = {triple for row in rows for triple in _triples(row)}
        for triple in _triples_of(axes):
            if triple not in met and (row := _completed(triple, axes, valid)):
                rows.append(row)
                met.update(_triples(row))
    return rows


def _triples(row: Row) -> Iterator[tuple[tuple[str, str], ...]]:
    return combinations(row.items(), STRENGTH)


def _triples_of(axes: Mapping[str, Sequence[str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    for names in combinations(axes, STRENGTH):
        for values in product(*(axes[name] for name in names)):
            yield tuple(zip(names, values, strict=True))


def _completed(triple: tuple[tuple[str, str], ...], axes: Mapping[str, Sequence[str]], valid: Callable[[Row], bool]) -> Row | None:
    """The first valid row that has these values."""
    fixed = dict(triple)
    rows = product(*((fixed[name],) if name in fixed else values for name, values in axes.items()))
    return next((row for values in rows if valid(row := dict(zip(axes, values, strict=True)))), None)


def _array(axes: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows in which every triple of values of every three axes occurs.

    Bush's orthogonal array (1952) over the prime field GF(p): row (a, b, c) has a + b x + c x^2 in column x, so any three
    columns determine the polynomial and meet in all p^3 ways. Axes with fewer values than p take them modulo their size.
    The full product is taken where it is smaller.
    """
    names = list(axes)
    sizes = [len(axes[name]) for name in names]
    if min(sizes, default=1) < 1:
        raise ValueError("an axis of a covering array has no values")
    if len(names) <= STRENGTH or np.prod(sizes, dtype=float) <= _prime(max(*sizes, len(names))) ** STRENGTH:
        return [dict(zip(names, row, strict=True)) for row in product(*(axes[name] for name in names))]
    p = _prime(max(*sizes, len(names)))
    a, b, c = (part.reshape(-1, 1) for part in np.meshgrid(*[np.arange(p)] * 3, indexing="ij"))
    columns = np.arange(len(names)).reshape(1, -1)
    cells = (a + b * columns + c * columns**2) % p % np.asarray(sizes)
    rows = dict.fromkeys(map(tuple, cells.tolist()))
    return [{name: axes[name][place] for name, place in zip(names, row, strict=True)} for row in rows]


def _prime(least: int) -> int:
    """The smallest prime that is at least `least`."""
    n = max(2, least)
    while any(n % d == 0 for d in range(2, int(n**0.5) + 1)):
        n += 1
    return n
