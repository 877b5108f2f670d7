"""How weights and activations are quantized: schemes, codes with scales, and the arithmetic in both directions."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from ..errors import SpecError, suggest

Array = np.ndarray[Any, Any]

CODES = {"int8": (-128, 127), "int4": (-8, 7), "float8_e4m3fn": (-448, 448)}
"""Dtypes of codes: the smallest and the largest. An int4 code lies in an int8 of its own until a kernel packs it."""
ACTIVATIONS = {"int8": 127, "float8_e4m3fn": 448}
"""Dtypes of quantized activations, and the code of a group's largest magnitude."""
OPEN = 2.0**-21
"""What float32 may lose on the way to a code, of the value: four roundings on either side."""
SCALES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

SLICE_VALUES = 1 << 18
"""Values that are quantized at a time: a megabyte in float32, which stays in a core's cache."""
UNCODED_VALUES = 1 << 23
"""Values whose codes are there at a time where a kernel takes them in slices."""
FACTORS = (1.0, 0.9, 1.1)
"""What the largest code is stretched by in the search for a scale; more of them lower the error by less than 1 %."""


@dataclass(frozen=True)
class Scheme:
    """A way to quantize a linear: weight = (code - zero) * scale.

    weight: dtype of the codes. group: inputs that share a scale; None: all of them. rows: outputs that share a scale;
    None: all of them (with group None, one scale for the tensor). zeros: a zero point beside each scale; otherwise 0.
    scales: the dtype that holds a scale. activation: what each token is quantized to on the fly; None: not at all.
    activation_group: inputs of a token that share a scale; None: all of them.

    As text: the weight's dtype and what differs from the defaults, `int8:a8`, `int4:g32:float16:a8g32`, `float8_e4m3fn:g128:r128`.
    """

    weight: str
    group: int | None = None
    rows: int | None = 1
    zeros: bool = False
    scales: str = "float32"
    activation: str | None = None
    activation_group: int | None = None

    def __post_init__(self) -> None:
        if self.weight not in CODES:
            raise SpecError(f"scheme: weights of {self.weight!r}. {suggest(self.weight, CODES)}")
        if self.scales not in SCALES:
            raise SpecError(f"scheme: scales of {self.scales!r}. {suggest(self.scales, SCALES)}")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise SpecError(f"scheme: activations of {self.activation!r}. {suggest(self.activation, ACTIVATIONS)}")
        for what in ("group", "rows", "activation_group"):
            if (size := getattr(self, what)) is not None and size < 1:
                raise SpecError(f"scheme: {what} of {size}; at least 1, or None for all")
        if self.zeros and self.weight.startswith("float"):
            raise SpecError(f"scheme: {self.weight} has no zero point")

    def __str__(self) -> str:
        short = {"int8": "a8", "float8_e4m3fn": "af8"}
        parts = [
            self.weight, f"g{self.group}" if self.group else "", "" if self.rows == 1 else f"r{self.rows or 'all'}",
            "zeros" if self.zeros else "", "" if self.scales == "float32" else self.scales,
            short[self.activation] + (f"g{self.activation_group}" if self.activation_group else "") if self.activation else "",
        ]
        return ":".join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reverse of `str`. Raises `SpecError` for a part that means nothing."""
        weight, *parts = text.split(":")
        fields: dict[str, Any] = {}
        for part in parts:
            if part == "zeros":
                fields["zeros"] = True
            elif part in SCALES:
                fields["scales"] = part
            elif match := re.fullmatch(r"a(f?)8(?:g(\d+))?", part):
                fields["activation"] = "float8_e4m3fn" if match[1] else "int8"
                fields["activation_group"] = int(match[2]) if match[2] else None
            elif match := re.fullmatch(r"g(\d+)", part):
                fields["group"] = int(match[1])
            elif match := re.fullmatch(r"r(\d+|all)", part):
                fields["rows"] = None if match[1] == "all" else int(match[1])
            else:
                raise SpecError(f"scheme {text!r}: {part!r} means nothing; write int8:a8, int4:g32:float16:a8g32, float8_e4m3fn:g128:r128")
        return cls(weight, **fields)

    def scale_shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """[groups of outputs, groups of inputs] of a weight [outputs, inputs]; the last of each may be partial."""
        return -(-outputs // (self.rows or outputs)), -(-inputs // (self.group or inputs))


class Quantized(NamedTuple):
    """A weight [outputs, inputs]: codes in its shape, scales and zero points (int8, or None) in `Scheme.scale_shape`."""

    codes: Array
    scales: Array
    zeros: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)


@dataclass(frozen=True)
class Uncoded:
    """A weight [outputs, inputs] of floats whose codes a kernel takes some rows at a time, so that they are never there at once.

    taken: called after each slice; the memory that it was read from may go.
    """

    weight: Array
    scheme: Scheme
    taken: Callable[[], None] = lambda: None

    def slices(self) -> Iterator[Quantized]:
        """Rows in order, in whole multiples of 64 and of those that share scales."""
        outputs, inputs = self.weight.shape
        rows = lcm(64, self.scheme.rows or max(1, outputs))
        step = rows * max(1, UNCODED_VALUES // max(1, rows * inputs))
        for at in range(0, outputs, step):
            yield quantize(self.weight[at : at + step], self.scheme)
            self.taken()


def dequantized(weight: Any, scheme: Scheme | None) -> Array:
    """The weight in float64. An array that is not quantized is only widened."""
    if not isinstance(weight, Quantized):
        return np.asarray(weight, np.float64)
    assert scheme is not None, "codes need a scheme"
    outputs, inputs = weight.shape
    row, column = np.arange(outputs) // (scheme.rows or outputs), np.arange(inputs) // (scheme.group or inputs)
    codes = np.asarray(weight.codes, np.float64)
    if weight.zeros is not None:
        codes -= np.asarray(weight.zeros, np.float64)[row][:, column]
    codes *= np.asarray(weight.scales, np.float64)[row][:, column]
    return codes


def restored(weight: Quantized, scheme: Scheme, dtype: Any) -> Array:
    """The weight in a dtype, some rows at a time: for lookup in an embedding that is stored as codes."""
    made = np.empty(weight.shape, dtype)
    if scheme.rows is None:
        made[:] = dequantized(weight, scheme)
        return made
    groups = max(1, (1 << 20) // max(1, weight.shape[1] * scheme.rows))
    for at in range(0, len(weight.scales), groups):
        rows, held = slice(at * scheme.rows, (at + groups) * scheme.rows), slice(at, at + groups)
        zeros = None if weight.zeros is None else weight.zeros[held]
        made[rows] = dequantized(Quantized(weight.codes[rows], weight.scales[held], zeros), scheme)
    return made


def quantized_rows(x: Any, scheme: Scheme) -> tuple[Array, Array]:
    """Activations on the fly: x [tokens, inputs] -> codes [tokens, inputs] and scales [tokens, groups] float32.

    In float32, each operation rounded once: scale = largest magnitude / limit, code = x * (limit / largest magnitude),
    to the nearest, ties to even. A group of zeros has the scale 0; one with an infinity or NaN has the scale NaN.
    """
    values, scales = _on_codes(x, scheme)
    return _nearest(values, scheme), scales


def _on_codes(x: Any, scheme: Scheme) -> tuple[Array, Array]:
    """(x in units of its codes [tokens, inputs], scales [tokens, groups]), float32."""
    assert scheme.activation is not None
    limit, group = np.float32(ACTIVATIONS[scheme.activation]), scheme.activation_group or max(1, x.shape[-1])
    x = np.asarray(x, np.float32)
    starts = np.arange(0, x.shape[-1], group)
    with np.errstate(all="ignore"):
        largest = np.maximum.reduceat(np.abs(x), starts, axis=-1) if x.size else np.zeros((len(x), len(starts)), np.float32)
        scales = np.where(np.isfinite(largest), largest / limit, np.float32(np.nan))
        inverse = np.where((largest > 0) & np.isfinite(limit / largest), limit / largest, np.float32(0))
        return x * np.repeat(inverse, group, axis=-1)[:, : x.shape[-1]], scales


def _nearest(values: Array, scheme: Scheme) -> Array:
    with np.errstate(all="ignore"):
        if scheme.activation == "int8":
            return np.nan_to_num(np.rint(values)).astype(np.int8)
        return values.astype(ml_dtypes.float8_e4m3fn)


def requantized(x: Any, scheme: Scheme | None) -> Array:
    """x in float64 after the way through its codes, where the scheme quantizes activations."""
    if scheme is None or scheme.activation is None:
        return np.asarray(x, np.float64)
    codes, scales = quantized_rows(x, scheme)
    return codes.astype(np.float64) * _per_value(scales, scheme, codes.shape[-1])


def undecided(x: Any, scheme: Scheme) -> Array:
    """How far each x [tokens, inputs] may move, in float64: the step between the codes beside a tie that float32 leaves open, or 0.

    A division that is rounded elsewhere, or done as a product with a reciprocal, shifts a value by less than `OPEN` of it.
    """
    values, scales = _on_codes(x, scheme)
    near = (_nearest(values * np.float32(1 + sign * OPEN), scheme).astype(np.float64) for sign in (-1, 1))
    return np.abs(np.subtract(*near)) * _per_value(scales, scheme, values.shape[-1])


def _per_value(scales: Array, scheme: Scheme, inputs: int) -> Array:
    """Scales of activations [tokens, groups] -> [tokens, inputs] in float64."""
    return np.repeat(scales.astype(np.float64), scheme.activation_group or max(1, inputs), axis=-1)[:, :inputs]


def quantize(weight: Any, scheme: Scheme) -> Quantized:
    """weight [outputs, inputs] of floats -> codes and scales. Slices of rows are taken on all cores.

    Integers without zero points: the largest value of a group, with its sign, gets the lowest code (with four bits, scales
    beside that one are tried, too), and the scale is then the least-squares one of the codes. With zero points: the range of
    the group, which includes 0. Floats: the largest magnitude gets the largest code.
    """
    outputs, inputs = weight.shape
    rows = scheme.rows or max(1, outputs)
    step = rows if rows > 1 else max(1, SLICE_VALUES // max(1, inputs))
    codes = np.empty(weight.shape, ml_dtypes.float8_e4m3fn if scheme.weight.startswith("float") else np.int8)
    scales = np.empty(scheme.scale_shape(*weight.shape), SCALES[scheme.scales])
    zeros = np.empty(scales.shape, np.int8) if scheme.zeros else None

    def fill(at: int) -> None:
        made = _quantize(np.asarray(weight[at : at + step], np.float32), scheme)
        held = slice(at // rows, at // rows + len(made.scales))
        codes[at : at + step], scales[held] = made.codes, made.scales
        if zeros is not None and made.zeros is not None:
            zeros[held] = made.zeros

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, outputs, step)))
    return Quantized(codes, scales, zeros)


def _quantize(weight: Array, scheme: Scheme) -> Quantized:
    """Rows that share scales with no others: single rows, or one group of them."""
    outputs, inputs = weight.shape
    group = scheme.group or inputs
    padded = np.pad(weight, ((0, 0), (0, -inputs % group))) if inputs % group else weight
    tiles = padded.reshape(outputs, -1, group)
    if scheme.rows != 1:
        tiles = np.ascontiguousarray(tiles.transpose(1, 0, 2)).reshape(1, tiles.shape[1], -1)
    codes, scales, zeros = _codes(tiles, scheme)
    if scheme.rows != 1:
        codes = codes.reshape(-1, outputs, group).transpose(1, 0, 2)
    return Quantized(np.ascontiguousarray(codes.reshape(outputs, -1)[:, :inputs]), scales, zeros)


def _codes(tiles: Array, scheme: Scheme) -> tuple[Array, Array, Array | None]:
    """tiles [rows, groups, values] -> codes of their shape, scales and zero points [rows, groups]."""
    low, high = CODES[scheme.weight]
    held = SCALES[scheme.scales]
    if scheme.weight.startswith("float"):
        scales = (_reduced(np.maximum, np.abs(tiles)) / np.float32(high)).astype(held)
        codes = np.clip(tiles * _inverse(scales)[..., None], low, high)
        return codes.astype(ml_dtypes.float8_e4m3fn), scales, None
    least, most = _reduced(np.minimum, tiles), _reduced(np.maximum, tiles)
    if scheme.zeros:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        scales = ((most - least) / np.float32(high - low)).astype(held)
        inverse = _inverse(scales)
        zeros = np.clip(np.rint(low - least * inverse), low, high)
        codes = np.clip(np.rint(tiles * inverse[..., None]) + zeros[..., None], low, high)
        return codes.astype(np.int8), scales, zeros.astype(np.int8)
    first = np.where(-least > most, least, most) / np.float32(low)
    best, scales = np.full(first.shape, -1, np.float32), first
    for factor in FACTORS if scheme.weight == "int4" else FACTORS[:1]:
        explained, fitted = _fit(tiles, first / np.float32(factor), low, high)
        best, scales = np.maximum(best, explained), np.where(explained > best, fitted, scales)
    scales = scales.astype(held)
    return _rounded(tiles, scales, low, high).astype(np.int8), scales, None


def _fit(tiles: Array, scales: Array, low: int, high: int) -> tuple[Array, Array]:
    """Of the codes under these scales: the squares that they explain at best, and the scale that does so."""
    codes = _rounded(tiles, scales, low, high)
    squares = np.maximum(np.einsum("rgv,rgv->rg", codes, codes), np.float32(1))
    product = np.einsum("rgv,rgv->rg", codes, tiles)
    fitted = product / squares
    return product * fitted, fitted


def _rounded(tiles: Array, scales: Array, low: int, high: int) -> Array:
    codes = tiles * _inverse(scales)[..., None]
    return np.clip(np.rint(codes, out=codes), low, high, out=codes)


def _reduced(pick: np.ufunc, tiles: Array) -> Array:
    """The smallest or largest of the last axis; halves first, for a reduction of short rows is several times slower."""
    while tiles.shape[-1] % 2 == 0:
        half = tiles.shape[-1] // 2
        tiles = pick(tiles[..., :half], tiles[..., half:])
    return pick.reduce(tiles, -1)


def _inverse(scales: Array) -> Array:
    """1 / scale in float32, and 0 for a group of zeros."""
    scales = scales.astype(np.float32)
    with np.errstate(divide="ignore"):
        return np.where(scales == 0, np.float32(0), np.float32(1) / scales)
