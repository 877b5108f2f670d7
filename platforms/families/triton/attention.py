"""attention in Triton: which tiles and how many shares of the keys a step gets, from its static shape alone.

One call holds prefill, decode and mixed rows. Few programs over long contexts share the keys out (split-KV, Dao et al. 2023),
and a second kernel puts the shares together in a fixed order.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ops import Attention, Batch, BatchShape, Kernel, Support
from ..supports import COMPUTES
from .attention_kernel import attention_kernel
from .attention_merge_kernel import attention_merge_kernel
from .device import Device
from .launches import Launch

YES_NO = ("no", "yes")
LONGEST = 576
"""Of the dims that tiles are laid out for."""
LOG2E = log2(2.718281828459045)
PROGRAMS = 4
"""How many programs a processor should have before keys are shared out no further."""
MOST_SHARES = 64
MERGED_ELEMENTS = 4096
"""Of one program of the merge."""


def kernels(device: Device) -> list[Kernel]:
    return [Kernel("attention", "triton.attention", supports, partial(attention, device))]


def supports(spec: Attention) -> Support:
    if spec.dtype not in COMPUTES:
        return f"dtype {spec.dtype}; the kernel computes in {', '.join(COMPUTES)}"
    if max(spec.key_dim, spec.value_dim) > LONGEST:
        return f"head dims {spec.key_dim} and {spec.value_dim}; tiles hold at most {LONGEST}"
    if not spec.scale > 0:
        return f"scale {spec.scale:g}; the kernel takes the largest score before it scales it, which must not turn the order around"
    return None


class Cut(NamedTuple):
    """A dim as one or two powers of two; the second may be 0, and what they have too much is masked."""

    first: int
    second: int


def cut(dim: int) -> Cut:
    first = max(16, 1 << (dim.bit_length() - 1))
    second = max(16, 1 << (dim - first - 1).bit_length()) if dim > first else 0
    return Cut(2 * first, 0) if second == first else Cut(first, second)


class Plan(NamedTuple):
    """How a batch of one shape is laid out for a spec."""

    launch: Launch
    tiles: int
    """Of queries."""
    chunks: int
    """Of all KV heads' groups of heads."""
    shares: int
    """Of the keys of a row; a power of two."""
    least_keys: int
    """Keys in a share, where the row has as many."""
    constants: dict[str, Any]


@lru_cache(maxsize=4096)
def plan(device: Device, spec: Attention, shape: BatchShape, keys: int, block_tokens: int) -> Plan:
    """keys: the longest context that the table of blocks can hold."""
    group, one_query = spec.heads.size // spec.kv_heads.size, shape.longest_query == 1
    typical = 1 if one_query else max(shape.tokens // shape.rows, 1)
    launch = device.configured("attention", half=YES_NO[spec.dtype != "float32"], dim=max(spec.key_dim, spec.value_dim),
                               lanes=typical * group, latent=YES_NO[spec.latent], codes=YES_NO[spec.kv_dtype is not None],
                               lines="odd" if spec.key_dim % 16 or spec.value_dim % 16 else "even")
    block_m, block_n = launch.meta["BLOCK_M"], launch.meta["BLOCK_N"]
    heads = min(group, block_m)
    tiles = shape.tokens if one_query else shape.tokens // (block_m // heads) + shape.rows + 1
    chunks = spec.kv_heads.size * -(-group // heads)
    least = max(2 * block_n, 4 * block_m)
    seen = keys if spec.window is None else min(keys, spec.window + (1 if one_query else block_m // heads) + block_n)
    wanted = min(PROGRAMS * device.target.processors // (tiles * chunks), seen // least, MOST_SHARES)
    key, value = cut(spec.key_dim), cut(spec.value_dim)
    if spec.latent:
        value = Cut(key.first, key.second if spec.value_dim > key.first else 0)
    constants = {
        "GROUP": group, "HEADS": heads, "ONE_QUERY": one_query, "BLOCK_TOKENS": block_tokens,
        "KEY_DIM": spec.key_dim, "KEY_0": key.first, "KEY_1": key.second,
        "VALUE_DIM": spec.value_dim, "VALUE_0": value.first, "VALUE_1": value.second,
    }
    return Plan(launch, tiles, chunks, 1 << max(wanted, 1).bit_length() - 1, least, constants)


def factors(spec: Attention) -> tuple[float, float | None]:
    """(scale, softcap) of the kernel: scores times scale are to base 2, or with a softcap twice the tanh's argument to base 2."""
    if spec.softcap is None:
        return spec.scale * LOG2E, None
    return 2 * spec.scale / spec.softcap * LOG2E, spec.softcap * LOG2E


def attention(device: Device, spec: Attention, q: Tensor, cell: Any, batch: Batch, sinks: Sequence[Tensor] | None = None) -> Tensor:
    """q [tokens, heads, key_dim] -> [tokens, heads, value_dim]; tokens of no row give zeros."""
    tokens, heads = q.shape[0], spec.heads.size
    out = q.new_empty(tokens, heads, spec.value_dim)
    if not tokens:
        return out
    table, block_tokens = batch.groups[cell.group].table, cell.k.shape[-2]
    laid = plan(device, spec, batch.shape, table.shape[1] * block_tokens, block_tokens)
    parts = peaks = totals = None
    if laid.shares > 1:
        parts, peaks, totals = workspace(out, laid.shares)
    q = q if q.stride(-1) == 1 else q.contiguous()
    v = None if spec.latent else _codes(cell.v)
    k_scale = None if spec.kv_dtype is None else cell.k_scale
    v_scale = None if spec.kv_dtype is None or spec.latent else cell.v_scale
    slopes = None if spec.alibi is None else _slopes(spec.alibi, q.device)
    scale, softcap = factors(spec)
    device.launch(
        attention_kernel, (laid.tiles, laid.chunks, laid.shares),
        out, parts, peaks, totals, q, _codes(cell.k), v, k_scale, v_scale, table, batch.row, batch.starts, batch.lengths,
        None if sinks is None else sinks[0], slopes,
        tokens, batch.shape.rows, laid.shares, laid.least_keys, heads, spec.kv_heads.size, table.stride(0), q.stride(0), q.stride(1),
        spec.window, softcap, scale, config=laid.launch, **laid.constants,
    )
    if parts is not None:
        width = min(MERGED_ELEMENTS // laid.shares, 128)
        device.launch(
            attention_merge_kernel, (tokens * heads, -(-spec.value_dim // width)), out, parts, peaks, totals, tokens * heads,
            config=device.configured("attention_merge"), SPLITS=laid.shares, VALUE_DIM=spec.value_dim, WIDTH=width,
        )
    return out


def workspace(out: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    """(parts, peaks, totals) of the shares, in float32."""
    parts = out.new_empty(shares, *out.shape, dtype=torch.float32)
    return parts, *out.new_empty(2, shares, *out.shape[:-1], dtype=torch.float32).unbind(0)


def _codes(array: Tensor) -> Tensor:
    """8-bit floats as their bits: the kernel decodes them on every chip."""
    return array.view(torch.uint8) if array.is_floating_point() and array.itemsize == 1 else array


@lru_cache(maxsize=64)
def _slopes(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
