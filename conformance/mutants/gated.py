"""Planted bugs of gated_linear: which output is the gate, what is activated, and what lies at the edge of a panel."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...ops import GatedLinear
from .linear import OURS, bf16, product, same, single
from .linear import RIGHT as TILED
from .plant import Variant, kernel
from .rows import activate

Array = np.ndarray[Any, Any]
PANEL = 64


@dataclass(frozen=True)
class Way:
    """gated_linear in float32; the defaults are right. Of weights and biases: (gate, up) -> (gate, up)."""

    parts: Callable[[Array, Array], tuple[Array, Array]] = lambda gate, up: (gate, up)
    biases: Callable[[Array, Array], tuple[Array, Array]] = lambda gate, up: (gate, up)
    between: Callable[[Array], Array] = same
    """Rounding of gate and up."""
    combine: Callable[[Any, Array, Array], Array] = lambda spec, gate, up: activate(spec, gate) * up


RIGHT = Way()


def _run(way: Way, spec: GatedLinear, x: Array, weight: Sequence[Array], batch: Any) -> Array:
    with np.errstate(all="ignore"):
        gate, up = (product(TILED, x, part) for part in way.parts(*weight[:2]))
        if spec.linear.bias:
            gate, up = (y + single(bias) for y, bias in zip((gate, up), way.biases(*weight[2:]), strict=True))
        return np.asarray(way.combine(spec.activation, way.between(gate), way.between(up)).astype(x.dtype))


def _way(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "gated_linear", source, partial(_run, replace(RIGHT, **wrong)))


def _behind_the_gate(gate: Array, up: Array) -> tuple[Array, Array]:
    """The up's panels begin right behind the gate's last row, and are read from the start of the next panel."""
    return gate, np.roll(up, -(-len(gate) % PANEL), axis=0)


def _one_panel_for_all(gate: Array, up: Array) -> tuple[Array, Array]:
    return gate, up[np.arange(len(up)) % PANEL]


BUGS: Sequence[Variant] = (
    _way("gate_and_up_swapped", OURS, parts=lambda gate, up: (up, gate), biases=lambda gate, up: (up, gate)),
    _way("biases_swapped", OURS, biases=lambda gate, up: (up, gate)),
    _way("bias_of_up_forgotten", OURS, biases=lambda gate, up: (gate, np.zeros_like(up))),
    _way("up_misaligned_behind_a_partial_panel", OURS, parts=_behind_the_gate),
    _way("first_panel_of_up_for_all", OURS, parts=_one_panel_for_all),
    _way("product_activated", OURS, combine=lambda spec, gate, up: activate(spec, gate * up)),
    _way("silu_whatever_the_kind", OURS, combine=lambda spec, gate, up: activate(spec, gate, "silu") * up),
    _way("sums_in_bfloat16", OURS, between=bf16),
)
LEGAL: Sequence[Variant] = (_way("float32", "fused: gate and up are not rounded"),)
