"""Norms and activations: one pass over memory each, whatever rows the input is made of."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....ops import Activation, AddRmsNorm, GatedActivation, Kernel, LayerNorm, RmsNorm, Support
from ..supports import Plain
from ..torch.rows import prepare_norm
from . import rows_kernel
from .device import Device

FLOATS = Plain("Triton")
LARGEST_ROW = 65_536
"""Elements of a normed row, which one program holds in registers."""


def kernels(device: Device) -> Sequence[Kernel]:
    """A row's bits depend on its size alone, as the tiles do; so all of them are batch invariant."""
    def of(op: str, run: Any, supports: Any, prepare: Any = None) -> Kernel:
        return Kernel(op, f"triton.{op}", supports, partial(run, device), prepare, batch_invariant=True)

    norm = partial(prepare_norm, device.torch)
    return [
        of("rms_norm", rms_norm, _normed, norm), of("layer_norm", layer_norm, _normed, norm),
        of("add_rms_norm", add_rms_norm, lambda spec: _normed(spec.norm), norm),
        of("activation", activation, FLOATS.float_dtype), of("gated_activation", gated_activation, FLOATS.float_dtype),
    ]


def _normed(spec: RmsNorm | LayerNorm) -> Support:
    if spec.size > LARGEST_ROW:
        return f"rows of {spec.size}; one program holds at most {LARGEST_ROW}"
    return FLOATS.float_dtype(spec)


class Rows(NamedTuple):
    """An input seen as rows [count, size]: row r lies at (r // inner) * outer_stride + (r % inner) * inner_stride."""

    array: Tensor
    count: int
    inner: int
    outer_stride: int
    inner_stride: int


def rows_of(x: Tensor, size: int, inner: int | None = None) -> Rows:
    """A view where the strides allow it (heads inside a fused projection), otherwise of a copy. inner: the split to use."""
    count = x.numel() // size
    if x.dim() == 2 and x.stride(-1) == 1 and inner in (None, 1):
        return Rows(x, count, 1, x.stride(0), 0)
    if x.dim() == 3 and x.stride(-1) == 1 and inner in (None, x.shape[1]) and x.shape[1]:
        return Rows(x, count, x.shape[1], x.stride(0), x.stride(1))
    return Rows(x.contiguous(), count, inner or 1, (inner or 1) * size, size)


def power_of_two(size: int) -> int:
    """The smallest one that is no smaller."""
    return 1 << (size - 1).bit_length()


def new(x: Tensor) -> Tensor:
    """A result of the same shape, contiguous."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def rms_norm(device: Device, spec: RmsNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    """x [..., size] -> [..., size]."""
    config, rows, out = device.configured("norm", size=spec.size), rows_of(x, spec.size), new(x)
    device.launch(
        rows_kernel.rms_norm, (-(-rows.count // config.meta["ROWS"]),),
        out, rows.array, weight[0], rows.count, spec.size, *rows[2:], spec.epsilon, BLOCK=power_of_two(spec.size), config=config,
    )
    return out


def add_rms_norm(device: Device, spec: AddRmsNorm, x: Tensor, residual: Tensor, weight: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x, residual [..., size] -> (rms_norm(x + residual), x + residual)."""
    norm, out, total = spec.norm, new(x), new(x)
    config, rows = device.configured("norm", size=norm.size), rows_of(x, norm.size)
    added = rows_of(residual, norm.size, rows.inner)
    device.launch(
        rows_kernel.add_rms_norm, (-(-rows.count // config.meta["ROWS"]),),
        out, total, rows.array, added.array, weight[0], rows.count, norm.size, *rows[2:], *added[3:], norm.epsilon,
        BLOCK=power_of_two(norm.size), config=config,
    )
    return out, total


def layer_norm(device: Device, spec: LayerNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    """x [..., size] -> [..., size]."""
    config, rows, out = device.configured("norm", size=spec.size), rows_of(x, spec.size), new(x)
    device.launch(
        rows_kernel.layer_norm, (-(-rows.count // config.meta["ROWS"]),),
        out, rows.array, weight[0], weight[1] if spec.bias else None, rows.count, spec.size, *rows[2:], spec.epsilon,
        BIAS=spec.bias, BLOCK=power_of_two(spec.size), config=config,
    )
    return out


def activation(device: Device, spec: Activation, x: Tensor) -> Tensor:
    return _activated(device, spec.kind, x, None)


def gated_activation(device: Device, spec: GatedActivation, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up."""
    return _activated(device, spec.kind, gate, up)


def _activated(device: Device, kind: str, gate: Tensor, up: Tensor | None) -> Tensor:
    size, out = (gate.shape[-1] if gate.dim() else 1), new(gate)
    if not gate.numel():
        return out
    rows = rows_of(gate, size)
    factor = rows if up is None else rows_of(up, size, rows.inner)
    config = device.configured("activation", size=size)
    grid = (-(-rows.count // config.meta["ROWS"]), -(-size // config.meta["BLOCK"]))
    device.launch(
        rows_kernel.activation, grid, out, rows.array, factor.array, rows.count, size, *rows[2:], *factor[3:],
        KIND=kind, GATED=up is not None, config=config,
    )
    return out
