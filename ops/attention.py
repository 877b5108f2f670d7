"""write_kv and attention over paged state, and qkv_rope_write: rotate, then write (optional, with a default)."""
from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import SpecError
from .kernel import Default
from .rope import Rope
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import EXACT, NAIVE_RELATIVE


@spec
class WriteKV(Spec):
    """`ops.write_kv(spec, k [tokens, kv_heads, key_dim], v [tokens, kv_heads, value_dim], cell, batch) -> None`.

    Token t goes to `batch.groups[cell.group].slots[t]` = block * block_tokens + offset; padding goes to block 0.
    """

    op = "write_kv"
    tolerance = EXACT

    kv_heads: Dim
    key_dim: int
    value_dim: int
    dtype: str

    def infer(self, k: Abstract, v: Abstract, cell: Any, batch: Any) -> None:
        expect(self.op, "k", k, (self.kv_heads.size, self.key_dim), self.dtype)
        expect(self.op, "v", v, (self.kv_heads.size, self.value_dim), self.dtype)

    def reference(self, k: Any, v: Any, cell: Any, batch: Any) -> None:
        block_tokens = cell.k.shape[-2]
        block, offset = np.divmod(np.asarray(batch.groups[cell.group].slots), block_tokens)
        cell.k[block, :, offset] = k
        cell.v[block, :, offset] = v


@spec
class Attention(Spec):
    """`ops.attention(spec, q [tokens, heads, key_dim], cell, batch[, sinks]) -> [tokens, heads, value_dim]`.

    Causal, grouped heads, ragged rows over paged K and V of `cell`: [blocks, kv_heads, block_tokens, dim] where the cell
    belongs to the reference. A query at position p sees keys max(0, p - window + 1) .. p.
    softcap: scores become softcap * tanh(score / softcap). sinks: a weight [heads] of logits that take part in the
    softmax and contribute no value (Xiao et al. 2023).
    """

    op = "attention"
    tolerance = NAIVE_RELATIVE

    heads: Dim
    kv_heads: Dim
    key_dim: int
    value_dim: int
    scale: float
    dtype: str
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def validate(self) -> None:
        if self.heads.size % self.kv_heads.size:
            raise SpecError(f"attention: {self.heads.size} heads do not divide into {self.kv_heads.size} key/value heads")
        if self.window is not None and self.window < 1:
            raise SpecError(f"attention: window {self.window}; at least 1, or None for all")

    def infer(self, q: Abstract, cell: Any, batch: Any, sinks: Any = None) -> Abstract:
        expect(self.op, "q", q, (self.heads.size, self.key_dim), self.dtype)
        return Abstract((*q.shape[:-1], self.value_dim), self.dtype)

    def reference(self, q: Any, cell: Any, batch: Any, sinks: Sequence[Any] | None = None) -> Any:
        q, table = wide(q), np.asarray(batch.groups[cell.group].table)
        out = np.zeros((*q.shape[:-1], self.value_dim))
        group = self.heads.size // self.kv_heads.size
        for row, (start, stop) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
            if start == stop:
                continue
            length = int(batch.lengths[row])
            positions = np.arange(length - (stop - start), length)
            first = 0 if self.window is None else max(0, int(positions[0]) - self.window + 1)
            keys, values = (gather(array, table[row], first, length) for array in (cell.k, cell.v))
            seen = np.arange(first, length)
            visible = seen[None, :] <= positions[:, None]
            if self.window is not None:
                visible &= seen[None, :] > positions[:, None] - self.window
            scores = np.einsum("tkgd,ksd->kgts", q[start:stop].reshape(stop - start, -1, group, self.key_dim), keys) * self.scale
            if self.softcap is not None:
                scores = self.softcap * np.tanh(scores / self.softcap)
            scores = np.where(visible, scores, -np.inf)
            peak = scores.max(axis=-1, keepdims=True)
            sink = None if sinks is None else wide(sinks[0]).reshape(-1, group, 1, 1)
            peak = peak if sink is None else np.maximum(peak, sink)
            weights = np.exp(scores - peak)
            total = weights.sum(axis=-1, keepdims=True)
            total = total if sink is None else total + np.exp(sink - peak)
            mixed = np.einsum("kgts,ksd->tkgd", weights / total, values)
            out[start:stop] = mixed.reshape(stop - start, self.heads.size, self.value_dim)
        return out

    def magnitude(self, q: Any, cell: Any, batch: Any, sinks: Sequence[Any] | None = None) -> Any:
        """The weighted mean of |v|: values of both signs cancel."""
        return self.reference(q, SimpleNamespace(group=cell.group, k=cell.k, v=np.abs(wide(cell.v))), batch, sinks)


def gather(array: Any, table: Any, first: int, stop: int) -> np.ndarray[Any, Any]:
    """[kv_heads, stop - first, dim] in float64: positions first .. stop - 1 of one row; no other position is read."""
    positions = np.arange(first, stop)
    block_tokens = array.shape[-2]
    return wide(array[np.asarray(table)[positions // block_tokens], :, positions % block_tokens]).transpose(1, 0, 2)


@spec
class QkvRopeWrite(Spec):
    """`ops.qkv_rope_write(spec, q, k, v, cell, batch) -> q`: q and k are rotated, k and v written."""

    op = "qkv_rope_write"
    tolerance = Rope.tolerance

    query: Rope
    key: Rope
    write: WriteKV

    @property
    def dtype(self) -> str:
        return self.query.dtype

    def infer(self, q: Abstract, k: Abstract, v: Abstract, cell: Any, batch: Any) -> Abstract:
        self.write.infer(self.key.infer(k, batch), v, cell, batch)
        return self.query.infer(q, batch)

    def reference(self, q: Any, k: Any, v: Any, cell: Any, batch: Any) -> Any:
        self.write.reference(self.key.reference(k, batch), v, cell, batch)
        return self.query.reference(q, batch)


def _qkv_rope_write(ops: Any, op: QkvRopeWrite, q: Any, k: Any, v: Any, cell: Any, batch: Any) -> Any:
    ops.write_kv(op.write, ops.rope(op.key, k, batch), v, cell, batch)
    return ops.rope(op.query, q, batch)


QKV_ROPE_WRITE = Default("qkv_rope_write", lambda op: (op.query, op.key, op.write), _qkv_rope_write)
