"""rope, write_kv, and both in one pass: qkv_rope_write. Cells are those of families/torch/state.py."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ....ops import Batch, Kernel, QkvRopeWrite, Rope, Support, WriteKV
from ....ops.quantize import ACTIVATIONS
from ..torch.codes import bits
from . import cells_kernel
from .device import Device
from .rows import FLOATS, new, power_of_two

LARGEST_HEAD = 4096
"""Elements of a head, which one program holds in registers."""


def kernels(device: Device) -> Sequence[Kernel]:
    """A head's bits depend on nothing around it; all of them are batch invariant."""
    return [
        Kernel("rope", "triton.rope", _heads, partial(rope, device), batch_invariant=True),
        Kernel("write_kv", "triton.write_kv", _written, partial(write_kv, device), batch_invariant=True),
        Kernel("qkv_rope_write", "triton.qkv_rope_write", _turned, partial(qkv_rope_write, device), batch_invariant=True),
    ]


def _heads(spec: Rope) -> Support:
    if spec.head_dim > LARGEST_HEAD:
        return f"heads of {spec.head_dim}; one program holds at most {LARGEST_HEAD}"
    return FLOATS.float_dtype(spec)


def _written(spec: WriteKV) -> Support:
    if max(spec.key_dim, spec.value_dim) > LARGEST_HEAD:
        return f"heads of {max(spec.key_dim, spec.value_dim)}; one program holds at most {LARGEST_HEAD}"
    return FLOATS.float_dtype(spec)


def _turned(spec: QkvRopeWrite) -> Support:
    """Queries and keys are turned by one table of angles."""
    alike = ("head_dim", "frequencies", "scale", "interleaved", "dtype")
    if any(getattr(spec.query, name) != getattr(spec.key, name) for name in alike):
        return "queries and keys turn differently"
    return _heads(spec.query) or _written(spec.write)


def rope(device: Device, spec: Rope, x: Tensor, batch: Batch) -> Tensor:
    """x [tokens, heads, head_dim] -> the same, contiguous."""
    x, out = _unit(x), new(x)
    tokens, heads, dim = x.shape
    half = len(spec.frequencies)
    config = device.configured("heads", dim=dim)
    device.launch(
        cells_kernel.rope, (-(-tokens * heads // config.meta["ROWS"]),),
        out, x, batch.positions, _frequencies(spec.frequencies, x.device), tokens, heads, half, dim - 2 * half,
        x.stride(0), x.stride(1), spec.scale,
        INTERLEAVED=spec.interleaved, HALF=power_of_two(half), REST=_tile(dim - 2 * half), config=config,
    )
    return out


def write_kv(device: Device, spec: WriteKV, k: Tensor, v: Tensor | None, cell: Any, batch: Batch) -> None:
    """k [tokens, kv_heads, key_dim], v [tokens, kv_heads, value_dim] or None where the cell is latent."""
    k, v = _unit(k), None if v is None else _unit(v)
    tokens, heads, _ = k.shape
    config = device.configured("heads", dim=max(spec.key_dim, spec.value_dim))
    held = _held(spec, cell)
    device.launch(
        cells_kernel.write_kv, (-(-tokens * heads // config.meta["ROWS"]),),
        *held[:4], k, v, batch.groups[cell.group].slots, tokens, heads, spec.key_dim, spec.value_dim, cell.k.shape[-2],
        k.stride(0), k.stride(1), *((0, 0) if v is None else (v.stride(0), v.stride(1))), *held[4:],
        LATENT=v is None, **_coding(spec), KEYS=power_of_two(spec.key_dim), VALUES=power_of_two(spec.value_dim), config=config,
    )


def qkv_rope_write(device: Device, spec: QkvRopeWrite, q: Tensor, k: Tensor, v: Tensor, cell: Any, batch: Batch) -> Tensor:
    """q [tokens, heads, head_dim] -> the same, turned; k and v go to the cell."""
    q, k, v, out = _unit(q), _unit(k), _unit(v), new(q)
    tokens, q_heads, dim = q.shape
    heads, half = k.shape[1], len(spec.query.frequencies)
    config = device.configured("heads", dim=max(dim, spec.write.value_dim))
    parts = sum(-(-tokens * count // config.meta["ROWS"]) for count in (q_heads, heads))
    held = _held(spec.write, cell)
    device.launch(
        cells_kernel.qkv_rope_write, (parts,),
        out, q, k, v, *held[:4], batch.groups[cell.group].slots, batch.positions, _frequencies(spec.query.frequencies, q.device),
        tokens, q_heads, heads, half, dim - 2 * half, spec.write.value_dim, cell.k.shape[-2],
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), *held[4:], spec.query.scale,
        INTERLEAVED=spec.query.interleaved, **_coding(spec.write), HALF=power_of_two(half), REST=_tile(dim - 2 * half),
        VALUES=power_of_two(spec.write.value_dim), config=config,
    )
    return out


def _held(spec: WriteKV, cell: Any) -> tuple[Any, ...]:
    """(k, v, their scales, and how far apart blocks of each lie); what the cell has not is None, or 0. Codes of float8 as their bits."""
    k, v = bits(cell.k), None if spec.latent else bits(cell.v)
    scales = (None, None) if spec.kv_dtype is None else (cell.k_scale, None if spec.latent else cell.v_scale)
    return k, v, *scales, k.stride(0), 0 if v is None else v.stride(0), 0 if scales[0] is None else scales[0].stride(0)


def _coding(spec: WriteKV) -> dict[str, Any]:
    return {"LIMIT": ACTIVATIONS[spec.kv_dtype] if spec.kv_dtype else 0, "FLOAT8": spec.kv_dtype == "float8_e4m3fn"}


def _unit(x: Tensor) -> Tensor:
    """With neighbours in a head next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tile(size: int) -> int:
    return power_of_two(size) if size else 0


@lru_cache(maxsize=64)
def _frequencies(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
