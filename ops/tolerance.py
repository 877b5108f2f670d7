"""How near a kernel must come to the float64 reference. Four classes, defined here and never by a vendor."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """One op's class.

    exact: equal bits. elementwise: `halves` half ulps of the output plus `depth` float32 roundings of the magnitude.
    naive_relative: maximum and RMS error at most `factor` times those of a naive evaluation in the same dtype, which count
    as `halves` half ulps at least.
    statistical: compared by distribution, by whoever draws the samples.
    """

    kind: Literal["exact", "elementwise", "naive_relative", "statistical"]
    depth: int = 0
    halves: int = 1
    factor: float = 2.0


EXACT = Tolerance("exact")
STATISTICAL = Tolerance("statistical")


FLUSHED = 2.0**-126
"""What may be lost where float32's subnormals are flushed to zero, as accelerators do."""


def elementwise(depth: int, halves: int = 1) -> Tolerance:
    """halves: 1, and 2 more for each intermediate result that a composition may round to the dtype."""
    return Tolerance("elementwise", depth=depth, halves=halves)


NAIVE_RELATIVE = Tolerance("naive_relative")


def exact(actual: Array, expected: Array) -> str | None:
    """None, or why the bits differ."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"is {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}"
    same = actual.view(f"u{actual.itemsize}") == expected.view(f"u{expected.itemsize}")
    return None if same.all() else _worst("bits differ", np.where(same, 0.0, 1.0), actual, expected)


def within(actual: Array, expected: Array, *, depth: int, halves: int = 1, magnitude: Array | None = None) -> str | None:
    """None, or the worst element outside `halves` half ulps of `actual.dtype` plus `depth` float32 roundings of `magnitude`.

    What is rounded lies up to those roundings away, where the dtype may be coarser. `expected` is float64; `magnitude` (default:
    |expected|) is the sum of the absolute values that were added up.
    """
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, expected {list(expected.shape)}"
    scale = np.abs(expected) if magnitude is None else magnitude
    found = actual.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = expected.astype(actual.dtype).astype(np.float64)
    expected = np.where(np.isinf(rounded), rounded, expected)
    before = depth * 2.0**-24 * scale + FLUSHED
    bound = halves * half_ulp(np.abs(expected) + before, actual.dtype) + before
    with np.errstate(invalid="ignore"):
        share = np.abs(found - expected) / np.maximum(bound, 1e-300)
    wrong = np.where(np.isfinite(expected), share, np.where(_alike(found, expected), 0.0, np.inf))
    wrong = np.where(np.isnan(found) != np.isnan(expected), np.inf, np.nan_to_num(wrong, nan=0.0, posinf=np.inf))
    return None if (wrong <= 1.0).all() else _worst("outside its bound", wrong, actual, expected)


def naive_relative(
    actual: Array, naive: Array, expected: Array, *, factor: float = 2.0, halves: int = 1, depth: int = 8,
    magnitude: Array | None = None,
) -> str | None:
    """None, or why `actual` errs more than `factor` times as much as `naive` does (maximum and RMS), both against float64.

    A naive evaluation that was lucky still counts as `halves` half ulps off, and by `depth` float32 roundings of the largest
    `magnitude` (default: |expected|), the sum of the absolute values that were added up.
    Infinities and NaN must stand where float64 or the naive evaluation has them.
    """
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, expected {list(expected.shape)}"
    found, usual = actual.astype(np.float64), naive.astype(np.float64)
    finite = np.isfinite(expected) & np.isfinite(usual)
    strange = ~finite & ~_alike(found, expected) & ~_alike(found, usual)
    if strange.any():
        return _worst("is not what infinities and NaN lead to", strange.astype(float), actual, expected)
    if not finite.any():
        return None
    error, usual = np.abs(found - expected)[finite], np.abs(usual - expected)[finite]
    scale = np.abs(expected) if magnitude is None else magnitude
    floor = np.maximum(halves * half_ulp(expected[finite], actual.dtype), depth * 2.0**-24 * scale[finite].max())
    for name, measure in (("maximum", np.max), ("RMS", lambda e: np.sqrt(np.mean(e * e)))):
        size, allowed = float(measure(error)), factor * float(measure(np.maximum(usual, floor)))
        if not size <= allowed:
            return f"has {name} error {size:.3g}, more than {allowed:.3g}, {factor:g} times that of a naive evaluation"
    return None


def _alike(a: Array, b: Array) -> Array:
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def half_ulp(values: Array, dtype: Any) -> Array:
    """Half the spacing of `dtype` at each value, at least that of its smallest normal number."""
    info = ml_dtypes.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), float(info.smallest_normal))))
    return np.asarray(np.exp2(exponent) * float(info.eps) / 2)


def _worst(what: str, score: Array, actual: Array, expected: Array) -> str:
    at = np.unravel_index(int(np.argmax(score)), score.shape)
    where = list(map(int, at))
    return f"{what} at {where}: {actual[at]} instead of {expected[at]} ({int(np.sum(score > 0)):,} of {score.size:,} differ)"
