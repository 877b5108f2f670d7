"""linear: one matrix product, also for several weights that share their input; sums and biases stay in float32. head_linear."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ....ops import HeadLinear, Linear
from .arrays import TORCH, tensor


def prepare(device: torch.device, spec: Linear, parts: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The tensors under each other [sum of outputs, input], and the biases behind each other [sum of outputs]."""
    count, dtype = len(spec.outputs), TORCH[spec.dtype]
    stacked = [parts[:count], parts[count:]] if spec.bias else [parts]
    return tuple(torch.cat([tensor(part).to(dtype) for part in same]).to(device) for same in stacked)


def product(device: torch.device) -> Any:
    """multiply(x [tokens, input], weight [output, input]) -> float32, from inputs of any dtype, by what the device can do."""
    try:
        probe = torch.zeros(8, 8, dtype=torch.bfloat16, device=device)
        torch.mm(probe, probe, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError):
        return _converted
    return _accumulated


def _converted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x.float(), weight.float())


def _accumulated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.float32:
        return F.linear(x, weight)
    made = torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out_dtype=torch.float32)
    return made.reshape(*x.shape[:-1], weight.shape[0])


def for_product(x: torch.Tensor) -> torch.Tensor:
    """x as a product takes it: on a CPU in float32, because oneDNN's products of bfloat16 on AMX read past a row whose width is not a
    multiple of 32, and a NaN there spreads (uxlfoundation/oneDNN #5717)."""
    return x.float() if x.device.type == "cpu" else x


def linear(widened: Any, spec: Linear, x: torch.Tensor, weight: Sequence[torch.Tensor], batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or views of one product, [tokens, output] each."""
    if spec.out_dtype in (None, spec.dtype):
        y = F.linear(*map(for_product, (x, *weight))).to(x.dtype)
    else:
        y = widened(x, weight[0])
        y = y + weight[1].float() if spec.bias else y
    return y if len(spec.outputs) == 1 else y.split([dim.size for dim in spec.outputs], dim=-1)


def run(device: torch.device) -> Any:
    return partial(linear, product(device))


def head_linear(spec: HeadLinear, x: torch.Tensor, weight: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [tokens, heads, input] -> [tokens, heads, output]: one batched product."""
    made = torch.bmm(for_product(x).transpose(0, 1), for_product(weight[0]).transpose(1, 2))
    return made.transpose(0, 1).to(x.dtype)
