"""Kernels of Intel's extension for torch (IPEX), where it is installed: norms, rotary embedding, the cache and paged attention.

Its cache is laid out like ours, [blocks, kv_heads, block_tokens, dim]. Everything is called through `intel_extension_for_pytorch.llm`,
which has the same functions for Intel GPUs and for the CPU.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...ops import AddRmsNorm, Attention, Batch, GatedActivation, Kernel, QkvRopeWrite, RmsNorm, Rope, Support, WriteKV
from ..families.supports import Plain
from ..families.torch.rows import prepare_norm

PACKAGE = "intel_extension_for_pytorch"
PLAIN = Plain("IPEX")


def ipex_kernels(device: torch.device) -> Sequence[Kernel]:
    ipex = Ipex(device, find_spec(PACKAGE) is not None)
    norm = partial(prepare_norm, device)
    return [
        Kernel("rms_norm", "ipex.rms_norm", ipex.supports_norm, rms_norm, norm),
        Kernel("add_rms_norm", "ipex.add_rms_norm", ipex.supports_add_norm, add_rms_norm, norm),
        Kernel("gated_activation", "ipex.silu_mul", ipex.supports_gated, silu_mul),
        Kernel("rope", "ipex.rotary_embedding", ipex.supports_rope, rope),
        Kernel("write_kv", "ipex.reshape_and_cache", ipex.supports_write, write_kv, batch_invariant=True),
        Kernel("qkv_rope_write", "ipex.rotary_embedding+cache", ipex.supports_turned_write, qkv_rope_write),
        Kernel("attention", "ipex.paged_attention", ipex.supports_attention, attention),
    ]


@dataclass(frozen=True)
class Ipex:
    """The answers of IPEX's kernels on one device."""

    device: torch.device
    installed: bool

    def _float(self, spec: Any) -> Support:
        return PLAIN.float_dtype(spec) if self.installed else f"{PACKAGE} is not installed"

    def supports_norm(self, spec: RmsNorm) -> Support:
        return self._float(spec)

    def supports_add_norm(self, spec: AddRmsNorm) -> Support:
        rounded = f"in {spec.norm.dtype} it rounds the sum before the norm; float32 only"
        return self._float(spec.norm) or (rounded if spec.norm.dtype != "float32" else None)

    def supports_gated(self, spec: GatedActivation) -> Support:
        if spec.kind != "silu":
            return self._float(spec) or f"{spec.kind}: silu_mul knows silu alone"
        return self._float(spec) or ("silu_mul on a CPU is torch's own, under torch.compile" if self.device.type == "cpu" else None)

    def supports_rope(self, spec: Rope) -> Support:
        turned = 2 * len(spec.frequencies)
        partly = f"{turned} of {spec.head_dim} dims are turned; its rotary embedding turns all"
        return self._float(spec) or (partly if turned != spec.head_dim else None)

    def supports_write(self, spec: WriteKV) -> Support:
        if spec.kv_dtype is not None or spec.latent:
            return self._float(spec) or "a cell of codes or of latent keys; its cache holds keys and values in their own dtype"
        return self._float(spec) or _unequal(spec)

    def supports_turned_write(self, spec: QkvRopeWrite) -> Support:
        return self.supports_write(spec.write) or self.supports_rope(spec.query) or self.supports_rope(spec.key)

    def supports_attention(self, spec: Attention) -> Support:
        beyond = [name for name, used in (("sinks", spec.sinks), ("codes", spec.kv_dtype), ("latent keys", spec.latent)) if used]
        return self._float(spec) or (f"{beyond[0]}: its paged attention has none" if beyond else _unequal(spec))


def _unequal(spec: WriteKV | Attention) -> Support:
    differ = spec.key_dim != spec.value_dim
    return f"keys of {spec.key_dim} and values of {spec.value_dim} dims; its cache has one size" if differ else None


def rms_norm(spec: RmsNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    from intel_extension_for_pytorch.llm import functional

    return functional.rms_norm(x.contiguous(), weight[0], spec.epsilon)


def add_rms_norm(spec: AddRmsNorm, x: Tensor, residual: Tensor, weight: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Its sum is written over its first argument."""
    from intel_extension_for_pytorch.llm import functional

    total = residual.clone(memory_format=torch.contiguous_format)
    return functional.add_rms_norm(total, x.contiguous(), weight[0], None, spec.norm.epsilon, True), total


def silu_mul(spec: GatedActivation, gate: Tensor, up: Tensor) -> Tensor:
    """Never run: on Intel GPUs alone."""
    from intel_extension_for_pytorch.llm import functional

    return functional.silu_mul(gate.contiguous(), up.contiguous(), torch.empty_like(gate, memory_format=torch.contiguous_format))


def rope(spec: Rope, x: Tensor, batch: Batch) -> Tensor:
    """It wants a key as well: one head of this query."""
    turned = x.clone(memory_format=torch.contiguous_format)
    _turn(spec, turned, turned[:, :1].clone(), batch)
    return turned


def _turn(spec: Rope, query: Tensor, key: Tensor, batch: Batch) -> None:
    """Both in place; angles as in the torch family."""
    from intel_extension_for_pytorch.llm import functional

    from ..families.torch.rows import cos_sin

    cos, sin = cos_sin(spec, batch.positions, query.device)
    places = torch.arange(query.shape[0], device=query.device)[None]
    functional.rotary_embedding(query, key, sin, cos, spec.head_dim, not spec.interleaved, places)


def write_kv(spec: WriteKV, k: Tensor, v: Tensor, cell: Any, batch: Batch) -> None:
    from intel_extension_for_pytorch.llm.modules import PagedAttention

    if len(k):
        PagedAttention.reshape_and_cache(k.contiguous(), v.contiguous(), cell.k, cell.v, batch.groups[cell.group].slots)


def qkv_rope_write(spec: QkvRopeWrite, q: Tensor, k: Tensor, v: Tensor, cell: Any, batch: Batch) -> Tensor:
    query, key = (one.clone(memory_format=torch.contiguous_format) for one in (q, k))
    _turn(spec.query, query, key, batch)
    write_kv(spec.write, key, v, cell, batch)
    return query


def attention(spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Any = None) -> Tensor:
    """q [tokens, heads, dim] -> the same shape: one query of each row against the cache, or ragged rows of them."""
    from intel_extension_for_pytorch.llm.modules import PagedAttention

    table, block_tokens = batch.groups[cell.group].table, cell.k.shape[-2]
    longest = table.shape[1] * block_tokens
    window = -1 if spec.window is None else spec.window - 1
    softcap = -1.0 if spec.softcap is None else spec.softcap
    slopes = None if spec.alibi is None else torch.tensor(spec.alibi, device=q.device)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    if not len(q):
        return out
    ends = torch.nn.functional.pad(batch.lengths.cumsum(0, dtype=torch.int32), (1, 0))
    PagedAttention.flash_attn_varlen_func(
        out, q.contiguous(), cell.k, cell.v, batch.starts, ends, batch.shape.longest_query, longest, spec.scale, True, table, slopes,
        window, -1 if window < 0 else 0, softcap=softcap,
    )
    return out
