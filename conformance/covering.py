"""Covering arrays: few rows in which any three parameters meet in all their values."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

STRENGTH = 3


def covering(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Rows over `axes` such that every triple of values of every three axes occurs; the same rows each time.

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
