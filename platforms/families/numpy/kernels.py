"""The float64 references of ops/ as kernels: each result is rounded once, to the dtype that the spec infers."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ops import DEFAULTS, DTYPES, Abstract, Kernel, Linear, Spec, always
from ....ops.quantize import CODES, dequantized

FINAL = ("derive", "sample", "write_kv")
"""Ops whose reference already answers in its final dtypes."""
SCHEMES = tuple(CODES)
"""For `Capabilities.schemes`: every scheme there is."""
ROWWISE = ("add", "concat", "derive", "embedding", "multiply", "scale", "split", "take_rows", "write_kv")
"""Ops in which no row can disturb another; NumPy adds up a product in an order that depends on all of its sizes."""


def reference_kernels() -> Sequence[Kernel]:
    """One kernel for each required op."""
    return [
        Kernel(op, "numpy.reference", always, _exactly if op in FINAL else _rounded, _widened if op == Linear.op else None, op in ROWWISE)
        for op in Spec.families
        if op not in DEFAULTS
    ]


def _exactly(spec: Spec, *arrays: Any) -> Any:
    return spec.reference(*arrays)


def _rounded(spec: Spec, *arrays: Any) -> Any:
    made = spec.infer(*(_abstract(array) for array in arrays))
    results = spec.reference(*arrays)
    if isinstance(made, Abstract):
        return results.astype(DTYPES[made.dtype])
    return tuple(result.astype(DTYPES[one.dtype]) for one, result in zip(made, results, strict=True))


def _abstract(value: Any) -> Any:
    return Abstract(value.shape, value.dtype.name) if isinstance(value, np.ndarray) else value


def _widened(spec: Linear, parts: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """In float64 once, instead of in every call."""
    return tuple(dequantized(part, spec.scheme) for part in parts)
