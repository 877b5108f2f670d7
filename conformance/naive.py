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
        gate, up, down = weight[:3]
        out = np.zeros(x.shape, np.float32)
        for token, rank in np.ndindex(*experts.shape):
            expert, row = experts[token, rank], x[token].astype(np.float32)
            opened = FORMULAS[spec.activation](dot(gate[expert], row).astype(x.dtype).astype(np.float64)).astype(x.dtype)
            hidden = (opened * dot(up[expert], row).astype(x.dtype)).astype(x.dtype).astype(np.float32)
            out[token] += weights[token, rank] * dot(down[expert], hidden).astype(x.dtype).astype(np.float32)
        return out.astype(x.dtype)

    return run


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
