"""The table of plain torch kernels, for any torch device."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ....ops import Kernel, always
from ..supports import Plain
from . import attention, experts, linear, quantized, rows, sample

PLAIN = Plain("torch")

EXACT: dict[str, Callable[..., Any]] = {
    "embedding": rows.embedding, "take_rows": rows.take_rows, "add": rows.add, "multiply": rows.multiply, "scale": rows.scale,
    "split": rows.split, "concat": rows.concat, "write_kv": attention.write_kv,
}
"""Picks and single roundings: nothing around a row can change its bits."""

ROUNDED: dict[str, Callable[..., Any]] = {
    "rope": rows.rope, "activation": rows.activation, "gated_activation": rows.gated_activation,
    "attention": attention.attention, "qkv_rope_write": attention.qkv_rope_write,
}
"""Vectorised tails and products may round differently as a row's neighbours change: no claim is made."""

NORMS: dict[str, Callable[..., Any]] = {
    "rms_norm": rows.rms_norm, "layer_norm": rows.layer_norm, "add_rms_norm": rows.add_rms_norm,
}


def kernels(device: torch.device) -> Sequence[Kernel]:
    """Every op of the contract, weights prepared on `device`."""
    norm = partial(rows.prepare_norm, device)
    return [
        *(Kernel(op, f"torch.{op}", PLAIN.float_dtype, run, batch_invariant=True) for op, run in EXACT.items()),
        *(Kernel(op, f"torch.{op}", PLAIN.float_dtype, run) for op, run in ROUNDED.items()),
        *(Kernel(op, f"torch.{op}", PLAIN.float_dtype, run, norm) for op, run in NORMS.items()),
        Kernel("linear", "torch.linear", PLAIN.single, linear.run(device)),
        Kernel("linear", "torch.fused_linear", PLAIN.fused, linear.run(device), partial(linear.prepare, device)),
        Kernel("linear", "torch.quantized_linear", PLAIN.quantized, quantized.linear, partial(quantized.prepare, device)),
        Kernel("head_linear", "torch.head_linear", PLAIN.float_dtype, linear.head_linear),
        Kernel("router", "torch.router", always, experts.router),
        Kernel("moe", "torch.moe", PLAIN.float_dtype, experts.moe, partial(experts.prepare, device)),
        Kernel("derive", "torch.derive", always, sample.derive, batch_invariant=True),
        Kernel("sample", "torch.sample", always, sample.sample),
    ]
