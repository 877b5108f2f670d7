"""Plain evaluations of composites in their own dtype: what a first, careful implementation would do, rounding at each step."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ops import AddRmsNorm, Attention, Moe
from ..ops.elementwise import FORMULAS

Array = np.ndarray[Any, Any]


def dot(matrix: Array, vector: Array) -> Array:
    """[rows] of matrix [rows, n] by vector [n], each added up from first to last in float32."""
    products = matrix.astype(np.float32) * vector.astype(np.float32)
    return np.cumsum(products, axis=-1, dtype=np.float32)[..., -1] if products.shape[-1] else np.zeros(len(matrix), np.float32)


def attention(spec: Attention) -> Any:
    """softmax(q k^T) v in float32, with decoded keys and values, scores and weights rounded to the dtype of q."""
    def run(q: Array, cell: Any, batch: Any, sinks: Sequence[Array] | None = None) -> Array:
        out = np.zeros((*q.shape[:-1], spec.value_dim), q.dtype)
        group = spec.heads.size // spec.kv_heads.size
        for row, (start, stop) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
            length = int(batch.lengths[row])
            for token in range(start, stop):
                position = length - (stop - token)
                first = 0 if spec.window is None else max(0, position - spec.window + 1)
                keys, values = (part.astype(q.dtype) for part in spec.gathered(cell, batch.groups[0].table[row], first, position + 1))
                behind = np.arange(first - position, 1, dtype=np.float32)
                for head in range(spec.heads.size):
                    scores: Array = (dot(keys[head // group], q[token, head]) * np.float32(spec.scale)).astype(q.dtype).astype(np.float32)
                    if spec.softcap is not None:
                        scores = np.float32(spec.softcap) * (1 - 2 / (1 + np.exp(scores * np.float32(2 / spec.softcap))))
                    if spec.alibi is not None:
                        scores = scores + np.float32(spec.alibi[head]) * behind
                    sink = [] if sinks is None else [np.float32(sinks[0][head])]
                    peak = max([scores.max(), *sink])
                    weights = np.exp(scores - peak)
                    total = weights.sum() + sum(np.exp(one - peak) for one in sink)
                    out[token, head] = dot(values[head // group].T, (weights / total).astype(q.dtype)).astype(q.dtype)
        return out

    return run


def moe(spec: Moe) -> Any:
    """Expert after expert, each product rounded to the dtype of x."""
    def run(x: Array, experts: Array, weights: Array, weight: Sequence[Array], batch: Any) -> Array:
        def linear(tensor: int, expert: int, row: Array) -> Array:
            y = dot(weight[tensor][expert], row).astype(x.dtype)
            return y + weight[3 + tensor][expert] if spec.bias else y

        out = np.zeros(x.shape, np.float32)
        for token, rank in np.ndindex(*experts.shape):
            expert, row = int(experts[token, rank]), x[token].astype(np.float32)
            hidden = _gated(spec, linear(0, expert, row), linear(1, expert, row)).astype(np.float32)
            out[token] += weights[token, rank] * linear(2, expert, hidden).astype(np.float32)
        return out.astype(x.dtype)

    return run


def _gated(spec: Moe, gate: Array, up: Array) -> Array:
    """In their dtype, rounded after each operation."""
    dtype, alpha = gate.dtype, spec.alpha or 1.0
    if spec.limit is not None:
        gate, up = np.minimum(gate, dtype.type(spec.limit)), np.clip(up, dtype.type(-spec.limit), dtype.type(spec.limit)) + dtype.type(1)
    opened = (FORMULAS[spec.activation](alpha * gate.astype(np.float64)) / alpha).astype(dtype)
    return np.asarray(opened * up, dtype)


def add_rms_norm(spec: AddRmsNorm) -> Any:
    """The sum rounded, then the norm in float32."""
    def run(x: Array, residual: Array, weight: Sequence[Array]) -> tuple[Array, Array]:
        total = (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)
        values = total.astype(np.float32)
        mean = np.cumsum(values * values, axis=-1, dtype=np.float32)[..., -1:] / np.float32(spec.norm.size)
        scale = np.sqrt(mean + np.float32(spec.norm.epsilon))
        normal = (values / scale).astype(x.dtype).astype(np.float32)
        return (normal * (weight[0].astype(np.float32) + np.float32(spec.norm.offset))).astype(x.dtype), total

    return run
