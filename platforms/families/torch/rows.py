"""Ops whose every row stands alone: picks, arithmetic, activations, norms and rope. Float32 inside, rounded once."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ....ops import (
    Activation,
    Add,
    AddRmsNorm,
    Concat,
    Embedding,
    GatedActivation,
    LayerNorm,
    Multiply,
    RmsNorm,
    Rope,
    Scale,
    Split,
    TakeRows,
)
from .arrays import tensor


def embedding(spec: Embedding, tokens: Tensor, weight: Sequence[Tensor]) -> Tensor:
    return torch.nn.functional.embedding(tokens, weight[0])


def take_rows(spec: TakeRows, x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows)


def split(spec: Split, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.split(spec.sizes, dim=-1))


def concat(spec: Concat, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=-1)


def add(spec: Add, a: Tensor, b: Tensor) -> Tensor:
    return a + b


def multiply(spec: Multiply, a: Tensor, b: Tensor) -> Tensor:
    return a * b


def scale(spec: Scale, x: Tensor) -> Tensor:
    return (x.float() * spec.factor).to(x.dtype)


def _gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(u)) as x sigmoid(2u), which loses no digits where tanh(u) is near -1."""
    return x * torch.sigmoid(2 * sqrt(2 / torch.pi) * (x + 0.044715 * x * x * x))


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: 0.5 * x * torch.erfc(x * -sqrt(0.5)),
    "gelu_tanh": _gelu_tanh,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def activation(spec: Activation, x: Tensor) -> Tensor:
    return FORMULAS[spec.kind](x.float()).to(x.dtype)


def gated_activation(spec: GatedActivation, gate: Tensor, up: Tensor) -> Tensor:
    return (FORMULAS[spec.kind](gate.float()) * up.float()).to(gate.dtype)


def prepare_norm(device: torch.device, spec: Any, parts: Sequence[Any]) -> tuple[Tensor, ...]:
    """Weight and bias in float32, with the spec's offset in the weight."""
    norm = spec.norm if isinstance(spec, AddRmsNorm) else spec
    weight, *bias = (tensor(part).float().to(device) for part in parts)
    return (weight + norm.offset if isinstance(norm, RmsNorm) else weight, *bias)


def rms_norm(spec: RmsNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    return _rms(spec, x.float(), weight).to(x.dtype)


def _rms(spec: RmsNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + spec.epsilon) * weight[0]


def layer_norm(spec: LayerNorm, x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    centred = x.float()
    centred = centred - centred.mean(-1, keepdim=True)
    y = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + spec.epsilon) * weight[0]
    return (y + weight[1] if spec.bias else y).to(x.dtype)


def add_rms_norm(spec: AddRmsNorm, x: Tensor, residual: Tensor, weight: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    total = x.float() + residual.float()
    return _rms(spec.norm, total, weight).to(x.dtype), total.to(x.dtype)


def rope(spec: Rope, x: Tensor, batch: Any) -> Tensor:
    cos, sin = (one[:, None, :] for one in cos_sin(spec, batch.positions, x.device))
    half = len(spec.frequencies)
    turned = x[..., : 2 * half].float()
    pairs = turned.unflatten(-1, (half, 2)).movedim(-1, 0) if spec.interleaved else turned.unflatten(-1, (2, half)).movedim(-2, 0)
    first, second = pairs.unbind(0)
    made = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1 if spec.interleaved else -2).flatten(-2)
    return torch.cat((made.to(x.dtype), x[..., 2 * half :]), dim=-1)


def cos_sin(spec: Rope, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """[tokens, frequencies] each. Angles are float32 products of position and frequency, as checkpoints were trained with."""
    angles = positions.float()[:, None] * _frequencies(spec.frequencies, device)
    return angles.cos() * spec.scale, angles.sin() * spec.scale


@lru_cache(maxsize=64)
def _frequencies(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
