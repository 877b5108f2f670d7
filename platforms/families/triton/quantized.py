"""linear under a scheme: weights packed once into the kernel's segments, activations quantized on the fly."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from ....ops import Kernel, Linear, Quantized, Scheme, Support
from ....ops.quantize import ACTIVATIONS
from ..supports import Plain
from ..torch.arrays import TORCH, tensor
from ..torch.codes import bits
from . import quantized_kernel
from .device import Device
from .fp8 import FORMS, as_fnuz, multiplied_as
from .linear import add_splits, ceil_div, divided, lines, partials, views
from .target import Target

PLAIN = Plain("Triton")
LANES = 32
"""What a segment is filled up to multiples of; longer ones than `LONG` to multiples of that."""
LONG = 128
EXACT_INPUTS = 2**31 // 2**15
"""Products of two int8 codes (with zero points: up to 255 x 128) that an int32 holds the sum of."""


def kernels(device: Device) -> Sequence[Kernel]:
    return [Kernel("linear", "triton.quantized_linear", supports, partial(linear, device), partial(prepare, device))]


def supports(spec: Linear) -> Support:
    return PLAIN.quantized(spec) or _segmented(spec) or _summed(spec)


def _segmented(spec: Linear) -> Support:
    weight, activation = groups_of(spec)
    if weight and activation and weight % activation and activation % weight:
        return f"groups of {weight} inputs with activations in groups of {activation}: one must divide the other"
    return None


def _summed(spec: Linear) -> Support:
    plan = plan_of(None, spec)
    if plan.product == "int8" and plan.segment > EXACT_INPUTS:
        return f"a sum over {plan.segment:,} codes may pass 32 bits; up to {EXACT_INPUTS:,} inputs of one scale"
    return None


@dataclass(frozen=True)
class Plan:
    """How one spec is computed on one target."""

    product: str
    """What codes and activations are when the matrix unit takes them: int8, an 8-bit float, or a float."""
    segment: int
    """Inputs of one segment; all scales are the same within it."""
    padded: int
    """Lanes of one segment."""
    segments: int
    scale_segments: int
    """Segments that share a scale of the weight; 0: all."""
    x_segments: int
    """Segments that share a scale of the activation; 0: all."""

    @property
    def whole(self) -> bool:
        return not (self.scale_segments or self.x_segments)


def groups_of(spec: Linear) -> tuple[int | None, int | None]:
    """Inputs of a scale of the weight and of the activation; None: all of them."""
    scheme, inputs = spec.scheme, spec.input.size
    assert scheme is not None
    weight, activation = (group if group and group < inputs else None for group in (scheme.group, scheme.activation_group))
    return weight, activation if scheme.activation else None


@lru_cache(maxsize=1024)
def plan_of(target: Target | None, spec: Linear) -> Plan:
    scheme, inputs = spec.scheme, spec.input.size
    assert scheme is not None
    weight, activation = groups_of(spec)
    segment = min((group for group in (weight, activation) if group), default=inputs)
    if segment == inputs and scheme.weight == "int4":
        segment = _filled(ceil_div(inputs, 2))
    segments = ceil_div(inputs, segment)
    return Plan(_product(target, spec), segment, _filled(segment), segments,
                weight // segment if weight else 0, activation // segment if activation else 0)


def _filled(segment: int) -> int:
    lanes = LONG if segment > LONG else LANES
    return ceil_div(segment, lanes) * lanes


def _product(target: Target | None, spec: Linear) -> str:
    """An 8-bit float only for results that are rounded: Hopper adds such products up in fewer bits than float32 has."""
    scheme = spec.scheme
    assert scheme is not None
    if scheme.activation is None:
        return spec.dtype
    if scheme.activation == "int8" and scheme.weight.startswith("int"):
        return "int8"
    both, rounded = scheme.activation == scheme.weight, (spec.out_dtype or spec.dtype) != "float32"
    native = multiplied_as(target) if target and both and rounded else None
    return native or "float16"


class Packed(NamedTuple):
    """A fused weight [outputs]: codes [outputs, lanes] (bytes [outputs, lanes / 2] of int4), scales and zeros [groups, scale rows]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None
    scale_outputs: int
    """Outputs that share a scale; 0: all."""


def prepare(device: Device, spec: Linear, parts: Sequence[Any]) -> Packed:
    scheme, plan, count = spec.scheme, plan_of(device.target, spec), len(spec.outputs)
    assert scheme is not None
    weights: list[Quantized] = list(parts[:count])
    codes = torch.cat([_packed(device.target, spec, plan, tensor(part.codes)) for part in weights])
    shared = scale_outputs(scheme, [len(part.codes) for part in weights])
    bias = torch.cat([tensor(part).float() for part in parts[count:]]).to(device.torch) if spec.bias else None

    def spread(name: str) -> Tensor:
        rows = [_spread(tensor(getattr(part, name)), scheme, len(part.codes), shared) for part in weights]
        return torch.cat(rows).t().contiguous().to(device.torch)

    return Packed(codes.to(device.torch), spread("scales"), spread("zeros") if scheme.zeros else None, bias, shared)


def scale_outputs(scheme: Scheme, outputs: Sequence[int]) -> int:
    """How many outputs share a row of the stacked scales: as in the scheme, where parts begin at a row of their own; otherwise 1."""
    if scheme.rows is None:
        return 0 if len(outputs) == 1 else 1
    return scheme.rows if all(size % scheme.rows == 0 for size in outputs[:-1]) else 1


def _spread(rows: Tensor, scheme: Scheme, outputs: int, shared: int) -> Tensor:
    """Scales [rows, groups] of one part, a row for each output where the stacked ones need it."""
    if shared != 1 or scheme.rows == 1:
        return rows
    return rows.repeat_interleave(scheme.rows or outputs, 0)[:outputs]


def _packed(target: Target, spec: Linear, plan: Plan, codes: Tensor) -> Tensor:
    """codes [outputs, inputs] -> [outputs, segments * padded], or two segments of four bits in a byte."""
    assert spec.scheme is not None
    native = multiplied_as(target)
    whole = bits(codes)
    whole = F.pad(whole, (0, plan.segments * plan.segment - whole.shape[1]))
    lanes = F.pad(whole.unflatten(1, (plan.segments, plan.segment)), (0, plan.padded - plan.segment))
    if spec.scheme.weight == "int4":
        lanes = F.pad(lanes, (0, 0, 0, plan.segments % 2))
        return ((lanes[:, 1::2] << 4) | (lanes[:, ::2] & 0xF)).flatten(1).contiguous()
    lanes = lanes.flatten(1).contiguous()
    if plan.product == "float8_e4m3fnuz":
        return as_fnuz(lanes).view(torch.float8_e4m3fnuz)
    return lanes.view(torch.float8_e4m3fn) if codes.is_floating_point() and native == "float8_e4m3fn" else lanes


def linear(device: Device, spec: Linear, x: Tensor, weight: Packed, batch: Any) -> Any:
    """x [tokens, input] -> [tokens, output], or views of one product, [tokens, output] each."""
    assert spec.scheme is not None
    plan = plan_of(device.target, spec)
    out = x.new_empty((len(x), len(weight.codes)), dtype=TORCH[spec.out_dtype or spec.dtype])
    if len(x):
        x = x if x.stride(-1) == 1 else x.contiguous()
        values, x_scales = (x, None) if spec.scheme.activation is None else quantize_rows(device, plan, spec, x)
        _multiply(device, spec, plan, out, values, x_scales, weight)
    return views(spec, out)


def quantize_rows(device: Device, plan: Plan, spec: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, input] -> codes [tokens, input] in what the product takes, and scales [tokens, groups] float32."""
    assert spec.scheme is not None and spec.scheme.activation is not None
    rows, inputs = x.shape
    group = groups_of(spec)[1] or inputs
    groups = ceil_div(inputs, group)
    config = device.configured("quantize_rows", group=group, rows=rows)
    limit = float(ACTIVATIONS[spec.scheme.activation])
    form = "int8" if spec.scheme.activation == "int8" else FORMS.get(plan.product, "e4m3")
    codes = x.new_empty((rows, inputs), dtype=torch.int8 if form == "int8" else torch.uint8)
    scales = x.new_empty((rows, groups), dtype=torch.float32)
    # A product and a sum that become one operation would round once where the codes' definition rounds twice.
    config = replace(config, options={**config.options, "enable_fp_fusion": False})
    device.launch(quantized_kernel.quantize_rows, (ceil_div(rows, config.meta["BLOCK_ROWS"]), groups), codes, scales, x, rows, inputs,
                  x.stride(0), GROUP=group, GROUPS=groups, LIMIT=limit, FORM=form, config=config)
    return (codes.view(getattr(torch, plan.product)) if plan.product in FORMS else codes), scales


def _multiply(device: Device, spec: Linear, plan: Plan, out: Tensor, x: Tensor, x_scales: Tensor | None, weight: Packed) -> None:
    (rows, inputs), outputs, scheme = x.shape, len(weight.codes), spec.scheme
    assert scheme is not None
    int4 = scheme.weight == "int4"
    config = device.configured("quantized_linear", weight=scheme.weight, product=plan.product, lines=lines(x), rows=rows,
                               scales="whole" if plan.whole else "grouped", outputs=outputs, inputs=inputs)
    block = min(config.meta["BLOCK_INPUTS"], plan.padded & -plan.padded)
    config = replace(config, meta={**config.meta, "BLOCK_INPUTS": block})
    steps = weight.codes.shape[1] // block
    config, tiles, splits = divided(device, config, rows, outputs, steps)
    partial_sums = partials(out, splits)
    device.launch(
        quantized_kernel.quantized_linear, (tiles, splits), out, partial_sums, x, x_scales, weight.codes, weight.scales, weight.zeros,
        weight.bias, rows, outputs, inputs, x.stride(0), weight.codes.stride(0), steps, weight.scales.shape[1],
        0 if x_scales is None else x_scales.shape[1],
        SPLITS=splits, product=_DTYPES[plan.product], INT4=int4, WHOLE=plan.whole,
        MASKED=plan.segment != plan.padded or plan.segments * plan.segment != inputs or (int4 and plan.segments % 2 == 1),
        FACTOR=4.0 if plan.product == "float8_e4m3fnuz" else 1.0, SEGMENT=plan.segment, PADDED=plan.padded,
        SCALE_OUTPUTS=weight.scale_outputs, SCALE_SEGMENTS=plan.scale_segments, X_SEGMENTS=plan.x_segments, config=config,
    )
    add_splits(device, out, partial_sums, weight.bias)


_DTYPES = {"int8": tl.int8, "float8_e4m3fn": tl.float8e4nv, "float8_e4m3fnuz": tl.float8e4b8, "float16": tl.float16,
           "bfloat16": tl.bfloat16, "float32": tl.float32}
