"""The linear over quantized weights: which schemes the C++ takes, and the packing of codes with their scales."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...ops import DTYPES, Kernel, Quantized, Scheme, Support, Uncoded
from ...ops.quantize import SCALES
from .kernels import COMPUTED, PANEL, Packed, gated_rows
from .library import NATIVE, layout, missing_reason

Array = np.ndarray[Any, Any]

BITS = {"int8": 8, "int4": 4}
SCHEMES = ("int8", "int8:a8", "int8:a8g128", "int8:g128:float16:a8g128", "int4", "int4:a8", "int4:g32:float16:a8g32")


def quantized_kernels() -> Sequence[Kernel]:
    """They keep a row's bits whatever its neighbours: pieces of k start at the same places for every row."""
    return [
        Kernel(
            op, f"native.quantized_{op}", supports, run, prepare, batch_invariant=True, layout=layout(), takes_slices=True, replayable=True,
        )
        for op, supports, run, prepare in (
            ("linear", _supports, _linear, _pack), ("gated_linear", lambda spec: _supports(spec.linear), _gated_linear, _pack_gated),
        )
    ]


def _supports(spec: Any) -> Support:
    if spec.dtype not in COMPUTED:
        return f"computes in {', '.join(COMPUTED)}, not in {spec.dtype}"
    if spec.scheme is None:
        return f"takes quantized weights only, none of {spec.dtype}"
    if spec.out_dtype not in (None, spec.dtype, "float32"):
        return f"answers in {spec.dtype} or float32, not in {spec.out_dtype}"
    return missing_reason() or _refused(spec.scheme, spec.input.size)


def _refused(scheme: Scheme, inputs: int) -> Support:
    if scheme.weight not in BITS or scheme.activation not in (None, "int8"):
        return f"takes int8 and int4 weights, with activations of int8 or as they are; not {scheme}"
    if scheme.rows != 1:
        return f"takes scales of a single output, not of {scheme.rows or 'all'} together ({scheme})"
    for what, group in (("weight", scheme.group), ("activation", scheme.activation_group)):
        if group is not None and group < inputs and group % 4:
            return f"takes groups of a multiple of 4 inputs, not {what} groups of {group}"
    return None


def _group(group: int | None, inputs: int) -> int:
    """As C++ has it: 0 for all inputs."""
    return group if group is not None and group < inputs else 0


@lru_cache(maxsize=256)
def _layout(scheme: Scheme, inputs: int) -> tuple[int, int, int, str, bool]:
    """What C++ is told of a packed weight: inputs, bits, group, dtype of the scales, whether there are zero points."""
    return inputs, BITS[scheme.weight], _group(scheme.group, inputs), scheme.scales, scheme.zeros


def _pack(spec: Any, parts: Sequence[Any]) -> Packed:
    """Part by part and slice by slice, so that codes are never held twice."""
    scheme, count, total = spec.scheme, len(spec.outputs), sum(dim.size for dim in spec.outputs)
    said = _layout(scheme, spec.input.size)
    panels = NATIVE.allocate(NATIVE.quantized_bytes(total, *said))
    first = 0
    for part in parts[:count]:
        for codes in part.slices() if isinstance(part, Uncoded) else (part,):
            NATIVE.pack_quantized(panels, total, first, *_contiguous(codes, scheme), *said)
            first += len(codes.codes)
    biases = [np.ascontiguousarray(part) for part in parts[count:]]
    return Packed(panels, [*biases] if biases else [None] * count)


def _pack_gated(spec: Any, parts: Sequence[Any]) -> Packed:
    """As `kernels` packs a gated linear: panels of the gate and of the up take turns."""
    scheme, total, said = spec.scheme, gated_rows(spec), _layout(spec.scheme, spec.linear.input.size)
    panels = NATIVE.allocate(NATIVE.quantized_bytes(total, *said))
    for place, part in enumerate(parts[:2]):
        first = place * PANEL
        for codes in part.slices() if isinstance(part, Uncoded) else (part,):
            for row in range(0, len(codes.codes), PANEL):
                arrays = (array if array is None else array[row : row + PANEL] for array in _contiguous(codes, scheme))
                NATIVE.pack_quantized(panels, total, first + 2 * row, *arrays, *said)
            first += 2 * len(codes.codes)
    biases = [np.ascontiguousarray(part) for part in parts[2:]]
    return Packed(panels, [*biases] if biases else [None, None])


def _contiguous(part: Quantized, scheme: Scheme) -> tuple[Array, Array, Array | None]:
    codes = np.ascontiguousarray(part.codes, np.int8).view(np.uint8)
    zeros = None if part.zeros is None else np.ascontiguousarray(part.zeros, np.int8).view(np.uint8)
    return codes, np.ascontiguousarray(part.scales, SCALES[scheme.scales]), zeros


def _linear(spec: Any, x: Array, weight: Packed, batch: Any) -> Any:
    scheme, inputs, dtype = spec.scheme, spec.input.size, DTYPES[spec.out_dtype or spec.dtype]
    outs = [NATIVE.empty((len(x), dim.size), dtype) for dim in spec.outputs]
    NATIVE.quantized_linear(
        np.ascontiguousarray(x), weight.panels, outs, weight.biases, *_layout(scheme, inputs),
        scheme.activation is not None, _group(scheme.activation_group, inputs),
    )
    return tuple(outs) if len(outs) > 1 else outs[0]


def _gated_linear(spec: Any, x: Array, weight: Packed, batch: Any) -> Array:
    scheme, inputs = spec.scheme, spec.linear.input.size
    out = NATIVE.empty((len(x), spec.linear.outputs[0].size), x.dtype)
    NATIVE.gated_quantized_linear(
        np.ascontiguousarray(x), weight.panels, out, weight.biases, spec.activation.kind, *_layout(scheme, inputs),
        scheme.activation is not None, _group(scheme.activation_group, inputs),
    )
    return out
