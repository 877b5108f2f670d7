"""linear under a scheme: codes and scales stay on the device, and become float32 when they are used."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ....ops import Linear, Quantized, Scheme
from .arrays import TORCH, tensor
from .codes import coded


def prepare(device: torch.device, spec: Linear, parts: Sequence[Any]) -> tuple[Any, ...]:
    """For each output a `Quantized` of tensors, an int4 code in a byte of its own; then the biases in float32."""
    def placed(part: Any) -> Any:
        if not isinstance(part, Quantized):
            return tensor(part).float().to(device)
        zeros = None if part.zeros is None else tensor(part.zeros).float().to(device)
        return Quantized(tensor(part.codes).to(device), tensor(part.scales).float().to(device), zeros)  # type: ignore[arg-type]

    return tuple(map(placed, parts))


def linear(spec: Linear, x: torch.Tensor, weight: Sequence[Any], batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or a tuple of them; float32 inside, rounded once."""
    assert spec.scheme is not None
    count, dtype = len(spec.outputs), TORCH[spec.out_dtype or spec.dtype]
    wide = _requantized(x, spec.scheme)
    made = [F.linear(wide, _weight(part, spec.scheme)) for part in weight[:count]]
    if spec.bias:
        made = [y + bias for y, bias in zip(made, weight[count:], strict=True)]
    rounded = tuple(y.to(dtype) for y in made)
    return rounded if count > 1 else rounded[0]


def quantized_rows(x: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """x [tokens, input] -> codes [tokens, groups, values], the last group filled up with zeros, and scales [tokens, groups, 1]."""
    assert scheme.activation is not None
    group = scheme.activation_group or x.shape[-1]
    return coded(F.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group)), scheme.activation)


def _requantized(x: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """x in float32, after the way through its codes where the scheme quantizes activations."""
    if scheme.activation is None:
        return x.float()
    codes, scales = quantized_rows(x, scheme)
    return (codes.float() * scales).flatten(-2)[..., : x.shape[-1]]


def _weight(part: Any, scheme: Scheme) -> torch.Tensor:
    """[outputs, inputs] in float32."""
    outputs, inputs = part.codes.shape

    def spread(values: torch.Tensor) -> torch.Tensor:
        rows = values.repeat_interleave(scheme.rows or outputs, 0)[:outputs]
        return rows.repeat_interleave(scheme.group or inputs, 1)[:, :inputs]

    codes = part.codes.float()
    return (codes if part.zeros is None else codes - spread(part.zeros)) * spread(part.scales)
