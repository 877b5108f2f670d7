"""The kernels of acme. `supports` says no in words; `run` does what `supports` said yes to."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from inferplane.ops import Kernel, Spec, Support

Array = np.ndarray[Any, Any]

TILE = 64
"""Keys that attention looks at in one turn."""


def own_kernels() -> Sequence[Kernel]:
    """In order of preference. batch_invariant is a promise: no neighbour changes a bit of a row.

    Products are NumPy's, whose order of addition depends on the number of rows: those kernels promise nothing.
    """
    return [
        Kernel("embedding", "acme.embedding", _float32, _embedding, batch_invariant=True),
        Kernel("take_rows", "acme.take_rows", _float32, _take_rows, batch_invariant=True),
        Kernel("add", "acme.add", _float32, _add, batch_invariant=True),
        Kernel("multiply", "acme.multiply", _float32, _multiply, batch_invariant=True),
        Kernel("scale", "acme.scale", _float32, _scale, batch_invariant=True),
        Kernel("activation", "acme.activation", _silu_or_relu, _activation),
        Kernel("gated_activation", "acme.gated_activation", _silu_or_relu, _gated_activation),
        Kernel("rms_norm", "acme.rms_norm", _float32, _rms_norm),
        Kernel("rope", "acme.rope", _halves, _rope),
        Kernel("linear", "acme.linear", _plain_linear, _linear, prepare=_transposed),
        Kernel("write_kv", "acme.write_kv", _plain_cell, _write_kv, batch_invariant=True),
        Kernel("attention", "acme.attention", _plain_attention, _attention),
    ]


def _float32(spec: Any) -> Support:
    return None if spec.dtype == "float32" else f"computes in float32, not in {spec.dtype}"


def _silu_or_relu(spec: Any) -> Support:
    return _float32(spec) or (None if spec.kind in ("silu", "relu") else f"does silu and relu, not {spec.kind}")


def _halves(spec: Any) -> Support:
    return _float32(spec) or ("turns halves of a head, not interleaved pairs" if spec.interleaved else None)


def _plain_linear(spec: Any) -> Support:
    if spec.scheme is not None:
        return f"multiplies by float32 weights, not by {spec.scheme}"
    if spec.out_dtype not in (None, "float32"):
        return f"answers in float32, not in {spec.out_dtype}"
    return _float32(spec)


def _plain_cell(spec: Any) -> Support:
    if spec.kv_dtype is not None or spec.latent:
        return "keeps keys and values as they are, neither as codes nor latent"
    return _float32(spec)


def _plain_attention(spec: Any) -> Support:
    if spec.softcap is not None or spec.sinks or spec.alibi is not None:
        return "has neither soft caps nor sinks nor ALiBi"
    return _plain_cell(spec)


def _embedding(spec: Spec, tokens: Array, weight: tuple[Array, ...]) -> Array:
    return weight[0][tokens]


def _take_rows(spec: Spec, x: Array, rows: Array) -> Array:
    return x[rows]


def _add(spec: Spec, a: Array, b: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return a + b


def _multiply(spec: Spec, a: Array, b: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return a * b


def _scale(spec: Any, x: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return x * np.float32(spec.factor)


def _activation(spec: Any, x: Array) -> Array:
    if spec.kind == "relu":
        return np.maximum(x, np.float32(0))
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def _gated_activation(spec: Any, gate: Array, up: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return _activation(spec, gate) * up


def _rms_norm(spec: Any, x: Array, weight: tuple[Array, ...]) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * (weight + offset)."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return x / np.sqrt(mean + np.float32(spec.epsilon)) * (weight[0] + np.float32(spec.offset))


def _rope(spec: Any, x: Array, batch: Any) -> Array:
    """Pair j of a head is (j, j + half); it turns by position * frequencies[j]."""
    angles = spec.angles(batch.positions)[:, None, :]
    cos, sin = np.cos(angles) * np.float32(spec.scale), np.sin(angles) * np.float32(spec.scale)
    half, out = len(spec.frequencies), x.copy()
    first, second = x[..., :half], x[..., half : 2 * half]
    out[..., :half] = first * cos - second * sin
    out[..., half : 2 * half] = second * cos + first * sin
    return out


def _transposed(spec: Any, parts: Sequence[Array]) -> tuple[Array, ...]:
    """Weights [output, input] as [input, output], then the biases."""
    count = len(spec.outputs)
    return (*(np.ascontiguousarray(part.T) for part in parts[:count]), *parts[count:])


def _linear(spec: Any, x: Array, weight: tuple[Array, ...], batch: Any) -> Any:
    count = len(spec.outputs)
    made = tuple(x @ tensor for tensor in weight[:count])
    if spec.bias:
        made = tuple(y + bias for y, bias in zip(made, weight[count:], strict=True))
    return made if count > 1 else made[0]


def _write_kv(spec: Spec, k: Array, v: Array, cell: Any, batch: Any) -> None:
    block, offset = np.divmod(batch.groups[cell.group].slots, cell.k.shape[-2])
    cell.k[block, :, offset] = k
    cell.v[block, :, offset] = v


def _attention(spec: Any, q: Array, cell: Any, batch: Any) -> Array:
    """Row by row, in tiles of keys, with a running maximum and sum (Milakov and Gimelshein 2018)."""
    out = np.zeros((*q.shape[:2], spec.value_dim), np.float32)
    table = batch.groups[cell.group].table
    for row, (start, stop) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
        if stop > start:
            positions = np.arange(batch.lengths[row] - (stop - start), batch.lengths[row])
            out[start:stop] = _row(spec, q[start:stop], cell, table[row], positions)
    return out


def _row(spec: Any, q: Array, cell: Any, blocks: Array, positions: Array) -> Array:
    """q [tokens, heads, key_dim] at `positions` -> [tokens, heads, value_dim]."""
    tokens, heads, group = len(q), spec.heads.size, spec.heads.size // spec.kv_heads.size
    grouped = q.reshape(tokens, -1, group, spec.key_dim).transpose(1, 2, 0, 3) * np.float32(spec.scale)
    peak = np.full((spec.kv_heads.size, group, tokens, 1), -np.inf, np.float32)
    total, mixed = np.zeros_like(peak), np.zeros((*peak.shape[:-1], spec.value_dim), np.float32)
    first = 0 if spec.window is None else max(0, int(positions[0]) - spec.window + 1)
    for begin in range(first, int(positions[-1]) + 1, TILE):
        seen = np.arange(begin, min(begin + TILE, int(positions[-1]) + 1))
        block, offset = np.divmod(seen, cell.k.shape[-2])
        keys, values = (part[blocks[block], :, offset].transpose(1, 0, 2)[:, None] for part in (cell.k, cell.v))
        hidden = seen[None, :] > positions[:, None]
        if spec.window is not None:
            hidden |= seen[None, :] <= positions[:, None] - spec.window
        scores = np.where(hidden, -np.inf, grouped @ keys.swapaxes(-1, -2))
        higher = np.maximum(peak, scores.max(axis=-1, keepdims=True))
        safe = np.where(np.isfinite(higher), higher, 0)
        old, weights = np.exp(peak - safe), np.exp(scores - safe)
        total, mixed, peak = total * old + weights.sum(axis=-1, keepdims=True), mixed * old + weights @ values, higher
    return (mixed / total).transpose(2, 0, 1, 3).reshape(tokens, heads, spec.value_dim)
