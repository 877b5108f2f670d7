"""write_kv and attention over paged state, and qkv_rope_write: rotate, then write (optional, with a default)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..errors import SpecError, suggest
from .kernel import Default
from .quantize import Scheme, quantized_rows
from .rope import Rope
from .spec import DTYPES, Abstract, Dim, Spec, expect, spec, wide
from .state import StateArray
from .tolerance import EXACT, NAIVE_RELATIVE

Array = np.ndarray[Any, Any]

KV_SCHEMES = {dtype: Scheme(dtype, activation=dtype) for dtype in ("int8", "float8_e4m3fn")}
"""Dtypes of a cell's codes, and how a head's row becomes codes and one scale."""


@spec
class WriteKV(Spec):
    """`ops.write_kv(spec, k [tokens, kv_heads, key_dim], v [tokens, kv_heads, value_dim], cell, batch) -> None`.

    Token t goes to `batch.groups[cell.group].slots[t]` = block * block_tokens + offset; padding goes to block 0.
    kv_dtype: k and v of the cell hold codes of this dtype, and `k_scale`, `v_scale` the scale of each token and head: see `coded`.
    latent: v is None and the cell has no v; values are the first `value_dim` entries of the keys.
    """

    op = "write_kv"
    tolerance = EXACT

    kv_heads: Dim
    key_dim: int
    value_dim: int
    dtype: str
    kv_dtype: str | None = None
    latent: bool = False

    def validate(self) -> None:
        _check_kv(self)

    @property
    def arrays(self) -> dict[str, StateArray]:
        """The arrays of the cell that it writes to, by name."""
        dims = {"k": self.key_dim} if self.latent else {"k": self.key_dim, "v": self.value_dim}
        heads, axis = self.kv_heads
        held = {name: StateArray(heads, dim, self.kv_dtype or self.dtype, axis) for name, dim in dims.items()}
        return held if self.kv_dtype is None else held | {f"{name}_scale": StateArray(heads, 1, "float32", axis) for name in dims}

    def infer(self, k: Abstract, v: Abstract | None, cell: Any, batch: Any) -> None:
        expect(self.op, "k", k, (self.kv_heads.size, self.key_dim), self.dtype)
        if self.latent != (v is None):
            raise SpecError("write_kv: latent keys come with v None, and others with their v; give what the spec says")
        if v is not None:
            expect(self.op, "v", v, (self.kv_heads.size, self.value_dim), self.dtype)

    def reference(self, k: Any, v: Any, cell: Any, batch: Any) -> None:
        block, offset = np.divmod(np.asarray(batch.groups[cell.group].slots), cell.k.shape[-2])
        for name, given in (("k", k),) if self.latent else (("k", k), ("v", v)):
            if self.kv_dtype is not None:
                given, getattr(cell, f"{name}_scale")[block, :, offset] = coded(given, self.kv_dtype)
            getattr(cell, name)[block, :, offset] = given


def coded(x: Any, kv_dtype: str) -> tuple[Array, Array]:
    """x [..., dim] -> codes in its shape and scales [..., 1] float32, by `quantized_rows` with a row for each token and head.

    A row with an infinity or NaN has codes of zero bits, and the scale NaN.
    """
    codes, scales = quantized_rows(np.asarray(x).reshape(-1, x.shape[-1]), KV_SCHEMES[kv_dtype])
    codes = np.where(np.isnan(scales), np.zeros((), codes.dtype), codes)
    return codes.reshape(x.shape), scales.reshape(*x.shape[:-1], 1)


@spec
class Attention(Spec):
    """`ops.attention(spec, q [tokens, heads, key_dim], cell, batch[, sinks]) -> [tokens, heads, value_dim]`.

    Causal, grouped heads, ragged rows over paged K and V of `cell`: [blocks, kv_heads, block_tokens, dim] where the cell
    belongs to the reference. A query at position p sees keys max(0, p - window + 1) .. p.
    softcap: scores become softcap * tanh(score / softcap). sinks: a weight [heads] of logits that take part in the
    softmax and contribute no value (Xiao et al. 2023). alibi: each head's slope; slope * (key's position - query's) is added
    to the score after scale and softcap (Press et al. 2022). kv_dtype: keys and values are codes times `k_scale` and
    `v_scale` [blocks, kv_heads, block_tokens, 1] of the cell. latent: the cell has no v; values are the first `value_dim`
    entries of the keys (multi-head latent attention, DeepSeek-V2).
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
    kv_dtype: str | None = None
    alibi: tuple[float, ...] | None = None
    latent: bool = False

    def validate(self) -> None:
        if self.heads.size % self.kv_heads.size:
            raise SpecError(f"attention: {self.heads.size} heads do not divide into {self.kv_heads.size} key/value heads")
        if self.window is not None and self.window < 1:
            raise SpecError(f"attention: window {self.window}; at least 1, or None for all")
        if self.alibi is not None and len(self.alibi) != self.heads.size:
            raise SpecError(f"attention: {len(self.alibi)} alibi slopes for {self.heads.size} heads; give one for each")
        if self.alibi is not None and not all(map(isfinite, self.alibi)):
            raise SpecError(f"attention: alibi slopes {self.alibi}; give finite numbers")
        _check_kv(self)

    def infer(self, q: Abstract, cell: Any, batch: Any, sinks: Any = None) -> Abstract:
        expect(self.op, "q", q, (self.heads.size, self.key_dim), self.dtype)
        return Abstract((*q.shape[:-1], self.value_dim), self.dtype)

    def reference(self, q: Any, cell: Any, batch: Any, sinks: Sequence[Any] | None = None) -> Any:
        return self._evaluate(q, cell, batch, sinks, lambda values: values)

    def magnitude(self, q: Any, cell: Any, batch: Any, sinks: Sequence[Any] | None = None) -> Any:
        """The weighted mean of |v|: values of both signs cancel."""
        return self._evaluate(q, cell, batch, sinks, np.abs)

    def _evaluate(self, q: Any, cell: Any, batch: Any, sinks: Sequence[Any] | None, turn: Callable[[Array], Array]) -> Array:
        """turn: what is done to the values before they are mixed."""
        q, table = wide(q), np.asarray(batch.groups[cell.group].table)
        out = np.zeros((*q.shape[:-1], self.value_dim))
        group = self.heads.size // self.kv_heads.size
        for row, (start, stop) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
            if start == stop:
                continue
            length = int(batch.lengths[row])
            positions = np.arange(length - (stop - start), length)
            first = 0 if self.window is None else max(0, int(positions[0]) - self.window + 1)
            keys, values = self.gathered(cell, table[row], first, length)
            scores = np.einsum("tkgd,ksd->kgts", q[start:stop].reshape(stop - start, -1, group, self.key_dim), keys)
            scores = self._hidden(scores * self.scale, np.arange(first, length) - positions[:, None])
            peak = scores.max(axis=-1, keepdims=True)
            sink = None if sinks is None else wide(sinks[0]).reshape(-1, group, 1, 1)
            peak = peak if sink is None else np.maximum(peak, sink)
            weights = np.exp(scores - peak)
            total = weights.sum(axis=-1, keepdims=True)
            total = total if sink is None else total + np.exp(sink - peak)
            mixed = np.einsum("kgts,ksd->tkgd", weights / total, turn(values))
            out[start:stop] = mixed.reshape(stop - start, self.heads.size, self.value_dim)
        return out

    def _hidden(self, scores: Array, ahead: Array) -> Array:
        """Scaled scores [kv_heads, group, queries, keys] capped, tilted and masked. ahead [queries, keys]: key's position - query's."""
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.alibi is not None:
            scores = scores + np.asarray(self.alibi).reshape(*scores.shape[:2], 1, 1) * ahead
        visible = ahead <= 0 if self.window is None else (ahead <= 0) & (ahead > -self.window)
        return np.where(visible, scores, -np.inf)

    def gathered(self, cell: Any, table: Any, first: int, stop: int) -> tuple[Array, Array]:
        """(keys, values) [kv_heads, stop - first, dim] in float64 of one row's positions first .. stop - 1, decoded."""
        keys = self._decoded(cell, "k", table, first, stop)
        return keys, keys[..., : self.value_dim] if self.latent else self._decoded(cell, "v", table, first, stop)

    def _decoded(self, cell: Any, name: str, table: Any, first: int, stop: int) -> Array:
        held = gather(getattr(cell, name), table, first, stop)
        return held if self.kv_dtype is None else held * gather(getattr(cell, f"{name}_scale"), table, first, stop)


def gather(array: Any, table: Any, first: int, stop: int) -> Array:
    """[kv_heads, stop - first, dim] in float64: positions first .. stop - 1 of one row; no other position is read."""
    positions = np.arange(first, stop)
    block_tokens = array.shape[-2]
    return wide(array[np.asarray(table)[positions // block_tokens], :, positions % block_tokens]).transpose(1, 0, 2)


def _check_kv(spec: WriteKV | Attention) -> None:
    """What both sides of a cell agree on."""
    if spec.kv_dtype is not None and spec.kv_dtype not in KV_SCHEMES:
        raise SpecError(f"{spec.op}: kv_dtype {spec.kv_dtype}. {suggest(spec.kv_dtype, KV_SCHEMES)} None keeps {spec.dtype}.")
    if spec.latent and spec.value_dim > spec.key_dim:
        raise SpecError(f"{spec.op}: latent values are a part of the keys, and value_dim {spec.value_dim} exceeds key_dim {spec.key_dim}")


@spec
class QkvRopeWrite(Spec):
    """`ops.qkv_rope_write(spec, q, k, v, cell, batch) -> q`: q and k are rotated, k and v written.

    A cell of codes holds those of the rotated k in its dtype.
    """

    op = "qkv_rope_write"
    tolerance = Rope.tolerance

    query: Rope
    key: Rope
    write: WriteKV

    def validate(self) -> None:
        if self.write.latent:
            raise SpecError("qkv_rope_write: latent keys are rotated only in part; use rope and write_kv")

    @property
    def dtype(self) -> str:
        return self.query.dtype

    def infer(self, q: Abstract, k: Abstract, v: Abstract, cell: Any, batch: Any) -> Abstract:
        self.write.infer(self.key.infer(k, batch), v, cell, batch)
        return self.query.infer(q, batch)

    def reference(self, q: Any, k: Any, v: Any, cell: Any, batch: Any) -> Any:
        self.write.reference(self.key.reference(k, batch).astype(DTYPES[self.dtype]), v, cell, batch)
        return self.query.reference(q, batch)

    def magnitude(self, q: Any, k: Any, v: Any, cell: Any, batch: Any) -> Any:
        return self.query.magnitude(q, batch)


def _qkv_rope_write(ops: Any, op: QkvRopeWrite, q: Any, k: Any, v: Any, cell: Any, batch: Any) -> Any:
    ops.write_kv(op.write, ops.rope(op.key, k, batch), v, cell, batch)
    return ops.rope(op.query, q, batch)


QKV_ROPE_WRITE = Default("qkv_rope_write", lambda op: (op.query, op.key, op.write), _qkv_rope_write)
