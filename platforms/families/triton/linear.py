"""linear and gated_linear in floats: our kernels stream the weights for few rows; the vendor's library, through torch, multiplies many."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....ops import GatedLinear, Kernel, Linear, Support
from ..supports import Plain
from ..torch.arrays import TORCH
from ..torch.linear import prepare
from ..torch.linear import run as torch_run
from . import linear_kernel
from .device import Device
from .launches import Launch
from .rows import gated_activation

PLAIN = Plain("Triton")
VENDOR = {"nvidia": "cublas", "amd": "hipblaslt"}
MOST_SPLITS = 16


def kernels(device: Device) -> Sequence[Kernel]:
    """First our few rows with the vendor's many, then ours for any number; with one output, fused, and gated."""
    own, both = partial(linear, device), partial(few_or_many, device, torch_run(device.torch))
    fused, gated = partial(prepare, device.torch), partial(_prepare_gated, device.torch)
    return [
        *_pair(device, "linear", "linear", PLAIN.single, both, own, None),
        *_pair(device, "linear", "fused_linear", PLAIN.fused, both, own, fused),
        *_pair(device, "gated_linear", "gated_linear", _gated, *(partial(gated_linear, device, one) for one in (both, own)), gated),
    ]


def _pair(device: Device, op: str, name: str, answer: Any, both: Any, own: Any, handle: Any) -> list[Kernel]:
    library = VENDOR[device.target.vendor]
    return [
        Kernel(op, f"triton.{name}+{library}", partial(_with_library, device, answer), both, handle),
        Kernel(op, f"triton.{name}", answer, own, handle),
    ]


def _gated(spec: GatedLinear) -> Support:
    return PLAIN.fused(spec.linear)


def _prepare_gated(device: torch.device, spec: GatedLinear, parts: Sequence[Any]) -> tuple[Tensor, ...]:
    return prepare(device, spec.linear, parts)


def _with_library(device: Device, answer: Callable[[Any], Support], spec: Any) -> Support:
    if device.target.interpreted:
        return f"{VENDOR[device.target.vendor]} needs the chip, and this is Triton's interpreter"
    return answer(spec)


def few_or_many(device: Device, library: Any, spec: Linear, x: Tensor, weight: Sequence[Tensor], batch: Any) -> Any:
    """Ours up to the table's row count; above it the library's tiles win."""
    most = device.configured("linear_few_rows", dtype=spec.dtype).meta["ROWS"]
    return (linear(device, spec, x, weight, batch) if len(x) <= most else library(spec, x, weight, batch))


def linear(device: Device, spec: Linear, x: Tensor, weight: Sequence[Tensor], batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or views of one product, [tokens, output] each."""
    outputs, inputs = weight[0].shape
    bias = weight[1] if spec.bias else None
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty((len(x), outputs), dtype=TORCH[spec.out_dtype or spec.dtype])
    if len(x) == 1:
        config = device.configured("linear_of_one_row", dtype=spec.dtype, outputs=outputs, inputs=inputs)
        grid = (ceil_div(outputs, config.meta["BLOCK_OUTPUTS"]),)
        device.launch(linear_kernel.linear_of_one_row, grid, out, x, weight[0], bias, outputs, inputs,
                      WHOLE_STEPS=inputs % config.meta["BLOCK_INPUTS"] == 0, config=config)
    elif len(x):
        _blocked(device, spec, out, x, weight[0], bias)
    return views(spec, out)


def gated_linear(device: Device, product: Any, spec: GatedLinear, x: Tensor, weight: Sequence[Tensor], batch: Any) -> Tensor:
    """x [tokens, input] -> [tokens, output]: one row at once; more by `product`, then the activation."""
    if len(x) != 1:
        return gated_activation(device, spec.activation, *product(spec.linear, x, weight, batch))
    size, inputs = len(weight[0]) // 2, weight[0].shape[1]
    out = x.new_empty((1, size))
    config = device.configured("gated_of_one_row", dtype=spec.dtype, outputs=size, inputs=inputs)
    device.launch(linear_kernel.gated_of_one_row, (ceil_div(size, config.meta["BLOCK_OUTPUTS"]),), out, x.contiguous(), weight[0],
                  weight[1] if spec.linear.bias else None, size, inputs, KIND=spec.activation.kind,
                  WHOLE_STEPS=inputs % config.meta["BLOCK_INPUTS"] == 0, config=config)
    return out


def _blocked(device: Device, spec: Linear, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    rows, (outputs, inputs) = len(x), weight.shape
    config = device.configured("linear", dtype=spec.dtype, lines=lines(x, weight), rows=rows, outputs=outputs, inputs=inputs)
    config, tiles, splits = divided(device, config, rows, outputs, ceil_div(inputs, config.meta["BLOCK_INPUTS"]))
    partial_sums = partials(out, splits)
    device.launch(linear_kernel.linear, (tiles, splits), out, partial_sums, x, weight, bias, rows, outputs, inputs, x.stride(0),
                  SPLITS=splits, WHOLE_STEPS=inputs % config.meta["BLOCK_INPUTS"] == 0, config=config)
    add_splits(device, out, partial_sums, bias)


def divided(device: Device, config: Launch, rows: int, outputs: int, steps: int) -> tuple[Launch, int, int]:
    """(the configuration for the kernel, tiles, splits of the steps): an entry's SPLITS, or as many as fill the chip twice.

    Each split keeps at least four steps, and none is empty.
    """
    meta = dict(config.meta)
    tiles = ceil_div(rows, meta["BLOCK_ROWS"]) * ceil_div(outputs, meta["BLOCK_OUTPUTS"])
    wanted = meta.pop("SPLITS", None) or ceil_div(2 * device.target.processors, tiles)
    splits = max(1, min(wanted, MOST_SPLITS, steps // 4))
    return replace(config, meta=meta), tiles, ceil_div(steps, ceil_div(steps, splits))


def lines(*arrays: Tensor) -> str:
    """even where every line begins at a multiple of 16 numbers, which is what the compiler is told, so that loads are wide; or odd."""
    return "odd" if any(array.stride(0) % 16 for array in arrays) else "even"


def partials(out: Tensor, splits: int) -> Tensor | None:
    """Room for the sums of the splits [splits, rows, outputs]; None where one program has them all."""
    return out.new_empty((splits, *out.shape), dtype=torch.float32) if splits > 1 else None


def add_splits(device: Device, out: Tensor, partial_sums: Tensor | None, bias: Tensor | None) -> None:
    if partial_sums is None:
        return
    rows, outputs = out.shape
    config = device.configured("add_splits", outputs=outputs)
    device.launch(linear_kernel.add_splits, (ceil_div(outputs, config.meta["BLOCK"]), rows), out, partial_sums, bias, outputs,
                  SPLITS=len(partial_sums), config=config)


def views(spec: Linear, out: Tensor) -> Any:
    """[tokens, outputs] as one result, or cut at the spec's outputs."""
    return out if len(spec.outputs) == 1 else out.split([dim.size for dim in spec.outputs], dim=-1)


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)
