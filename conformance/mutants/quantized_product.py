"""Quantized products that are right, by dequantized float32 or by integers, with each decision open to be made wrong."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import DTYPES, Linear, Quantized, Scheme
from ...ops.quantize import ACTIVATIONS
from .linear import same, single

Array = np.ndarray[Any, Any]
Parts = Sequence[Quantized]


def nearest(values: Array, dtype: str) -> Array:
    """Values in units of their codes -> the codes, in float32."""
    if dtype == "int8":
        return single(np.nan_to_num(np.rint(values)).astype(np.int8))
    return single(values.astype(ml_dtypes.float8_e4m3fn))


def inverted(largest: Array, limit: Any) -> Array:
    """What x is multiplied by; 0 for a group of nothing."""
    found = limit / largest
    return np.where((largest > 0) & np.isfinite(found), found, np.float32(0))


@dataclass(frozen=True)
class Way:
    """A quantized product by dequantized float32; the defaults are right."""

    # The weight.
    part: Callable[[Parts, int], Quantized] = lambda parts, place: parts[place]
    codes: Callable[[Quantized, Scheme], Array] = lambda part, scheme: single(part.codes)
    scales: Callable[[Array, Scheme], Array] = lambda scales, scheme: single(scales)
    rows: Callable[[Array, int], Array] = lambda places, count: places
    columns: Callable[[Array, int], Array] = lambda places, count: places
    """Which group each output and each input belongs to, of so many."""
    subtract: Callable[[Array, Array], Array] = np.subtract
    """codes and zero points, both [outputs, inputs]"""
    tensor: Callable[[Array], Array] = same
    # The activations.
    x: Callable[[Array], Array] = single
    size: Callable[[Array], Array] = np.abs
    largest: Callable[[Array], Array] = same
    """[tokens, groups]"""
    group: Callable[[Scheme], int | None] = lambda scheme: scheme.activation_group
    limit: Callable[[float], float] = lambda limit: limit
    inverse: Callable[[Array, Any], Array] = inverted
    nearest: Callable[[Array, str], Array] = nearest
    tokens: Callable[[Array], Array] = lambda scales: np.where(np.isfinite(scales), scales, np.float32(np.nan))
    # The result.
    product: Callable[[Array, Array], Array] = lambda x, tensor: x @ tensor.T
    bias: Callable[[Array, Array], Array] = lambda bias, scales: bias


RIGHT = Way()


def weight_of(way: Way, part: Quantized, scheme: Scheme) -> Array:
    """[outputs, inputs] in float32."""
    outputs, inputs = part.shape
    row = way.rows(np.arange(outputs) // (scheme.rows or outputs), len(part.scales))
    column = way.columns(np.arange(inputs) // (scheme.group or inputs), part.scales.shape[1])
    codes = way.codes(part, scheme)
    if part.zeros is not None:
        codes = way.subtract(codes, single(part.zeros)[row][:, column])
    return way.tensor(codes * way.scales(part.scales, scheme)[row][:, column])


def coded(way: Way, x: Array, scheme: Scheme) -> tuple[Array, Array]:
    """(codes in float32, scales), both [tokens, inputs]."""
    assert scheme.activation is not None
    inputs, limit = x.shape[1], np.float32(way.limit(ACTIVATIONS[scheme.activation]))
    place = np.arange(inputs) // (way.group(scheme) or inputs)
    largest = way.largest(np.maximum.reduceat(way.size(x), np.flatnonzero(np.diff(place, prepend=-1)), axis=-1))
    codes = way.nearest(x * way.inverse(largest, limit)[:, place], scheme.activation)
    return codes, way.tokens(largest / limit)[:, place]


def activations_of(way: Way, x: Array, scheme: Scheme) -> Array:
    """x [tokens, inputs] in float32, after the way through its codes."""
    if scheme.activation is None:
        return single(x)
    codes, scales = coded(way, way.x(x), scheme)
    return codes * scales


def finished(spec: Linear, made: Sequence[Array], weight: Sequence[Array], bias: Callable[[int], Array]) -> Any:
    dtype, count = DTYPES[spec.out_dtype or spec.dtype], len(spec.outputs)
    results = [(y + bias(place) if spec.bias else y).astype(dtype) for place, y in enumerate(made)]
    return tuple(results) if count > 1 else results[0]


def multiply(way: Way, spec: Linear, x: Array, weight: Sequence[Any], batch: Any) -> Any:
    """`Linear`'s own arguments."""
    scheme, count = spec.scheme or Scheme("int8"), len(spec.outputs)
    wide = activations_of(way, x, scheme)
    parts = [way.part(weight[:count], place) for place in range(count)]

    def bias(place: int) -> Array:
        return way.bias(single(weight[count + place]), single(parts[place].scales))

    return finished(spec, [way.product(wide, weight_of(way, part, scheme)) for part in parts], weight, bias)


def by_integers(
    spec: Linear, x: Array, weight: Sequence[Any], batch: Any, dot: Callable[[Array, Array], Array] = lambda x, tensor: x @ tensor.T,
) -> Any:
    """Codes by codes, exactly, in stretches of inputs that share their scales; then the scales, in float32."""
    scheme, count = spec.scheme or Scheme("int8"), len(spec.outputs)
    inputs = spec.input.size
    codes, scales = (single(x), np.ones_like(x, np.float32)) if scheme.activation is None else coded(RIGHT, single(x), scheme)
    cuts = sorted({*range(0, inputs, scheme.group or inputs), *range(0, inputs, scheme.activation_group or inputs), inputs})
    made = []
    for part in weight[:count]:
        row = np.arange(len(part.codes)) // (scheme.rows or len(part.codes))
        y = np.zeros((len(x), len(part.codes)), np.float32)
        for start, stop in pairwise(cuts):
            column, seen = start // (scheme.group or inputs), codes[:, start:stop].astype(np.float64)
            found = dot(seen, np.asarray(part.codes[:, start:stop], np.float64))
            if part.zeros is not None:
                found = found - seen.sum(axis=1, keepdims=True) * np.asarray(part.zeros, np.float64)[row, column]
            y += single(found) * (scales[:, start, None] * single(part.scales)[row, column])
        made.append(y)
    return finished(spec, made, weight, lambda place: single(weight[count + place]))
