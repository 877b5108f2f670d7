"""router in NumPy, and moe over the C++ linears: (token, rank) pairs sorted by expert, each expert over its own."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ops import DTYPES, Kernel, Support, always
from .kernels import COMPUTED
from .library import NATIVE, layout, missing_reason

Array = np.ndarray[Any, Any]


def expert_kernels() -> Sequence[Kernel]:
    """Both keep a row's bits whatever its neighbours: a linear does, and a token's experts are added by rank."""
    return [
        Kernel("router", "numpy.router", always, _router, batch_invariant=True),
        Kernel("moe", "native.moe", _supports, _moe, _pack, batch_invariant=True, layout=layout()),
    ]


def _supports(spec: Any) -> Support:
    if spec.dtype not in COMPUTED:
        return f"computes in {', '.join(COMPUTED)}, not in {spec.dtype}"
    return missing_reason()


def _router(spec: Any, logits: Array, bias: Sequence[Array] | None = None) -> tuple[Array, Array]:
    """In float32. Without a bias gates rise with their logits, so these are sorted; equal ones stay in order."""
    with np.errstate(over="ignore"):
        if spec.sigmoid:
            gates = 1 / (1 + np.exp(-logits))
        else:
            gates = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
            gates /= gates.sum(axis=-1, keepdims=True)
    ranks = logits if bias is None else spec.ranks(gates + bias[0])
    experts = np.argsort(-ranks, axis=-1, kind="stable")[:, : spec.top_k]
    weights = np.take_along_axis(gates, experts, axis=-1)
    weights = weights / weights.sum(axis=-1, keepdims=True) if spec.renormalize else weights
    return experts.astype(np.int32), weights if spec.scale is None else weights * np.float32(spec.scale)


class Experts(NamedTuple):
    """Each expert's weights in panels of 64 outputs: gate and up fused, and down; uint8 [experts, bytes]. biases: theirs, or none."""

    gate_up: Array
    down: Array
    biases: tuple[Array, ...] = ()
    """gate, up [experts, mlp] and down [experts, embed]."""

    def bias(self, place: int, expert: int) -> Array | None:
        return self.biases[place][expert] if self.biases else None


def _pack(spec: Any, parts: Sequence[Array]) -> Experts:
    count, embed, mlp = spec.experts.size, spec.embed, spec.mlp.size
    sizes = [NATIVE.packed_bytes(outputs, inputs, spec.dtype) for outputs, inputs in ((2 * mlp, embed), (embed, mlp))]
    gate_up, down = (NATIVE.allocate(count * size).reshape(count, size) for size in sizes)
    packed = Experts(gate_up, down, tuple(np.ascontiguousarray(part) for part in parts[3:]))
    gate, up, down = parts[:3]
    for expert in range(count):
        NATIVE.pack_part(packed.gate_up[expert], 2 * mlp, 0, np.ascontiguousarray(gate[expert]))
        NATIVE.pack_part(packed.gate_up[expert], 2 * mlp, mlp, np.ascontiguousarray(up[expert]))
        NATIVE.pack_part(packed.down[expert], embed, 0, np.ascontiguousarray(down[expert]))
    return packed


def _moe(spec: Any, x: Array, experts: Array, weights: Array, weight: Experts, batch: Any) -> Array:
    """The rows of one expert lie together in `made` [tokens * top_k, embed] float32, where `place` finds a token's by rank."""
    flat = experts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    rows, made = _rows(x, order // spec.top_k), NATIVE.empty((len(flat), spec.embed), np.float32)
    start = 0
    for expert, pairs in zip(*np.unique(flat, return_counts=True), strict=True):
        part = slice(start, start + int(pairs))
        _expert(spec, rows[part], weight, int(expert), made[part])
        start = part.stop
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    place = place.reshape(experts.shape)
    total = weights[:, :1] * made[place[:, 0]]
    for rank in range(1, spec.top_k):
        total += weights[:, rank, None] * made[place[:, rank]]
    return total.astype(DTYPES[spec.dtype], copy=False)


def _expert(spec: Any, x: Array, weight: Experts, expert: int, out: Array) -> None:
    """out [rows, embed] = the MLP of one expert over x [rows, embed]; between the linears it is rounded to the model's dtype once."""
    gate, up, hidden = (NATIVE.empty((len(x), spec.mlp.size), np.float32) for _ in range(3))
    NATIVE.linear(x, weight.gate_up[expert], [gate, up], [weight.bias(0, expert), weight.bias(1, expert)])
    if spec.limit is None:
        NATIVE.gated_activation(gate, up, spec.activation, hidden)
    else:
        hidden = _limited(spec, gate, up)
    NATIVE.linear(hidden.astype(x.dtype, copy=False), weight.down[expert], [out], [weight.bias(2, expert)])


def _limited(spec: Any, gate: Array, up: Array) -> Array:
    gate, up = np.minimum(gate, np.float32(spec.limit)), np.clip(up, np.float32(-spec.limit), np.float32(spec.limit))
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(np.float32(-spec.alpha) * gate)) * (up + 1)


def _rows(x: Array, rows: Array) -> Array:
    out = NATIVE.empty((len(rows), x.shape[1]), x.dtype)
    NATIVE.take_rows(np.ascontiguousarray(x), rows.astype(np.int32), out)
    return out
