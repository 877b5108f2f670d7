"""What latent attention takes besides attention: head_linear over the C++ linear, a head after the other; split and concat in NumPy."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ops import Kernel, Support, always
from .kernels import COMPUTED
from .library import NATIVE, layout, missing_reason

Array = np.ndarray[Any, Any]


def latent_kernels() -> Sequence[Kernel]:
    return [
        Kernel("head_linear", "native.head_linear", _supports, _head_linear, _pack, batch_invariant=True, layout=layout()),
        Kernel("split", "numpy.split", always, _split, batch_invariant=True),
        Kernel("concat", "numpy.concat", always, _concat, batch_invariant=True),
    ]


def _supports(spec: Any) -> Support:
    if spec.dtype not in COMPUTED:
        return f"computes in {', '.join(COMPUTED)}, not in {spec.dtype}"
    return missing_reason()


def _pack(spec: Any, parts: Sequence[Array]) -> Array:
    """[heads, bytes] uint8: each head's weight in panels of 64 outputs."""
    size = NATIVE.packed_bytes(spec.output, spec.input, spec.dtype)
    panels: Array = NATIVE.allocate(spec.heads.size * size).reshape(spec.heads.size, size)
    for head, weight in zip(panels, parts[0], strict=True):
        NATIVE.pack_part(head, spec.output, 0, np.ascontiguousarray(weight))
    return panels


def _head_linear(spec: Any, x: Array, weight: Array) -> Array:
    by_head, made = np.ascontiguousarray(x.transpose(1, 0, 2)), NATIVE.empty((spec.heads.size, len(x), spec.output), x.dtype)
    for rows, panels, out in zip(by_head, weight, made, strict=True):
        NATIVE.linear(rows, panels, [out], [None])
    return np.ascontiguousarray(made.transpose(1, 0, 2))


def _split(spec: Any, x: Array) -> tuple[Array, ...]:
    return tuple(np.split(x, np.cumsum(spec.sizes)[:-1], axis=-1))


def _concat(spec: Any, *parts: Array) -> Array:
    return np.concatenate(parts, axis=-1)
