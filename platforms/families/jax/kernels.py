"""The table of plain JAX kernels, for any JAX device."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ....ops import Kernel, always
from ..supports import Plain
from . import attention, experts, quantized, rows, sample

PLAIN = Plain("JAX")

EXACT: dict[str, Callable[..., Any]] = {
    "embedding": rows.embedding, "take_rows": rows.take_rows, "add": rows.add, "multiply": rows.multiply,
    "split": rows.split, "concat": rows.concat, "write_kv": attention.write_kv,
}
"""Picks and single roundings: nothing around a row can change its bits."""

ROUNDED: dict[str, Callable[..., Any]] = {
    "scale": rows.scale, "rope": rows.rope, "activation": rows.activation, "gated_activation": rows.gated_activation,
    "attention": attention.attention, "qkv_rope_write": attention.qkv_rope_write,
}
"""XLA may fuse and tile these differently in each shape: no claim is made."""

NORMS: dict[str, Callable[..., Any]] = {
    "rms_norm": rows.rms_norm, "layer_norm": rows.layer_norm, "add_rms_norm": rows.add_rms_norm,
}


def kernels(device: Any) -> Sequence[Kernel]:
    """Every op of the contract, weights prepared on `device`."""
    norm = partial(rows.prepare_norm, device)
    return [
        *(Kernel(op, f"jax.{op}", PLAIN.float_dtype, run, batch_invariant=True) for op, run in EXACT.items()),
        *(Kernel(op, f"jax.{op}", PLAIN.float_dtype, run) for op, run in ROUNDED.items()),
        *(Kernel(op, f"jax.{op}", PLAIN.float_dtype, run, norm) for op, run in NORMS.items()),
        Kernel("linear", "jax.linear", PLAIN.single, rows.linear),
        Kernel("linear", "jax.fused_linear", PLAIN.fused, rows.linear, partial(rows.prepare_linear, device)),
        Kernel("linear", "jax.quantized_linear", PLAIN.quantized, quantized.linear, partial(quantized.prepare, device)),
        Kernel("head_linear", "jax.head_linear", PLAIN.float_dtype, rows.head_linear),
        Kernel("router", "jax.router", always, experts.router),
        Kernel("moe", "jax.moe", PLAIN.float_dtype, experts.moe, partial(experts.prepare, device)),
        Kernel("derive", "jax.derive", always, sample.derive, batch_invariant=True),
        Kernel("sample", "jax.sample", always, sample.sample),
    ]
