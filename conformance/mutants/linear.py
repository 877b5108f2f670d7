"""Planted bugs of linear: tails, biases, several outputs, precision, and what is kept between calls."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import DTYPES, Kernel, Linear, always
from .plant import FAMILIES, MutantPlatform, Run, Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


def same(array: Array) -> Array:
    return array


def single(array: Array) -> Array:
    return np.asarray(array, np.float32)


def bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def tf32(array: Array) -> Array:
    """Ten bits of mantissa, the rest cut off."""
    return (np.ascontiguousarray(array.astype(np.float32)).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@dataclass(frozen=True)
class Tiles:
    """A matrix product in tiles of the input axis; the defaults are right."""

    k: int = 32
    wide: Callable[[Array], Array] = single
    stop: Callable[[int], int] = same  # type: ignore[assignment]
    """The end of the input axis."""
    sum: Callable[[Array], Array] = same
    """Rounding of the accumulator after each tile."""
    weight: Callable[[Sequence[Array], int], Array] = lambda tensors, place: tensors[place]
    bias: Callable[[Sequence[Array], int], Array | None] = lambda biases, place: biases[place] if len(biases) else None
    out: Callable[[Array], Array] = same
    """Rounding of the result before it gets its dtype."""


RIGHT = Tiles()


def multiply(way: Tiles, spec: Linear, x: Array, weight: Sequence[Array], batch: Any) -> Any:
    """`Linear`'s own arguments; float32 inside, rounded once."""
    dtype, number = DTYPES[spec.out_dtype or spec.dtype], len(spec.outputs)
    made = []
    with np.errstate(all="ignore"):
        for place in range(number):
            y = product(way, x, way.weight(weight[:number], place))
            bias = way.bias(weight[number:], place)
            made.append(way.out(y if bias is None else y + single(bias)).astype(dtype))
    return tuple(made) if number > 1 else made[0]


def product(way: Tiles, x: Array, tensor: Array) -> Array:
    """x [tokens, input] by tensor [output, input], transposed."""
    total = np.zeros((len(x), len(tensor)), np.float32)
    for at in range(0, way.stop(x.shape[-1]), way.k):
        total = way.sum(total + way.wide(x[:, at : at + way.k]) @ way.wide(tensor[:, at : at + way.k]).T)
    return total


def tiles(name: str, source: str, **wrong: Any) -> Variant:
    """The tiled product with some decisions made wrong."""
    return kernel(name, "linear", source, partial(multiply, replace(RIGHT, **wrong)))


def each(name: str, source: str, change: Callable[[Array, Array], Array], **fields: Any) -> Variant:
    """Every result y of the right product becomes change(y, x)."""
    def run(spec: Linear, x: Array, *rest: Any) -> Any:
        made = multiply(RIGHT, spec, x, *rest)
        return tuple(change(y, x) for y in made) if isinstance(made, tuple) else change(made, x)

    return kernel(name, "linear", source, run, **fields)


def _tail_zeroed(axis: int, tile: int) -> Callable[[Array, Array], Array]:
    """What lies behind the last full tile is never written, where there is a full one."""
    def change(y: Array, x: Array) -> Array:
        size = y.shape[axis]
        if size > tile:
            y[(slice(None),) * axis + (slice(size // tile * tile, None),)] = 0
        return y

    return change


def _unmasked_tail(spec: Linear, x: Array, weight: Sequence[Array], batch: Any) -> Any:
    """The last tile of 4 reads on into the next row of x, against a weight padded with its last column."""
    missing = -spec.input.size % 4
    if not missing or not len(x):
        return multiply(RIGHT, spec, x, weight, batch)
    following = np.roll(x, -1, axis=0)[:, np.arange(missing) % spec.input.size]
    number = len(spec.outputs)
    padded = [np.concatenate([part, np.repeat(part[:, -1:], missing, axis=1)], axis=1) for part in weight[:number]]
    return multiply(RIGHT, spec, np.concatenate([x, following], axis=1), [*padded, *weight[number:]], batch)


def _contiguous_assumed(spec: Linear, x: Array, *rest: Any) -> Any:
    """Rows are taken to follow each other without a gap, whatever the strides say."""
    start = x.base if isinstance(x.base, np.ndarray) and x.base.dtype == x.dtype and x.base.size >= x.size else x
    flat = np.ascontiguousarray(start).reshape(-1)
    return multiply(RIGHT, spec, flat[: x.size].reshape(x.shape), *rest)


def _no_empty_batch(spec: Linear, x: Array, *rest: Any) -> Any:
    if not len(x):
        raise ZeroDivisionError("a grid of 0 programs")
    return multiply(RIGHT, spec, x, *rest)


def _empty_batch_of_one(spec: Linear, x: Array, *rest: Any) -> Any:
    return multiply(RIGHT, spec, x if len(x) else np.zeros((1, x.shape[1]), x.dtype), *rest)


def _equal_outputs(tensors: Sequence[Array], place: int) -> Array:
    """The fused weight is cut into parts of the first one's size."""
    fused, size = np.concatenate(list(tensors)), len(tensors[0])
    return np.resize(fused[place * size :], (len(tensors[place]), fused.shape[1])) if place else fused[:size]


def _by_rows(spec: Linear, x: Array, *rest: Any) -> Any:
    """The input axis is split for small batches only, and yet batch-invariance is promised."""
    return multiply(replace(RIGHT, k=7 if len(x) < 4 else 32), spec, x, *rest)


def _half_sum(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float32)


def _atomics() -> Run:
    calls = count()
    return lambda spec, x, weight, batch: multiply(replace(RIGHT, k=(5, 32)[next(calls) % 2]), spec, x, weight, batch)


def _second_call() -> Run:
    """The workspace is cleared once, and then added to."""
    kept: dict[Any, Any] = {}

    def run(spec: Linear, x: Array, *rest: Any) -> Any:
        made = multiply(RIGHT, spec, x, *rest)
        parts = made if isinstance(made, tuple) else (made,)
        old = kept.setdefault((spec, x.shape), tuple(np.zeros_like(part) for part in parts))
        kept[spec, x.shape] = tuple((a + b).astype(a.dtype) for a, b in zip(parts, old, strict=True))
        return kept[spec, x.shape] if isinstance(made, tuple) else kept[spec, x.shape][0]

    return run


def _one_buffer() -> Run:
    """Every call of one shape answers in the same memory."""
    kept: dict[Any, Any] = {}

    def run(spec: Linear, x: Array, *rest: Any) -> Any:
        made = multiply(RIGHT, spec, x, *rest)
        parts = made if isinstance(made, tuple) else (made,)
        buffers = kept.setdefault((spec, x.shape), parts)
        for buffer, part in zip(buffers, parts, strict=True):
            buffer[...] = part
        return buffers if isinstance(made, tuple) else buffers[0]

    return run


def _stale_preparation() -> MutantPlatform:
    """Weights are prepared once for a spec, and the next layer gets the handle of the first."""
    kept: dict[Linear, Any] = {}
    prepare = lambda spec, parts: kept.setdefault(spec, tuple(np.array(part) for part in parts))  # noqa: E731
    return MutantPlatform(kernels=[Kernel("linear", "planted.weights_prepared_once_per_spec", always, partial(multiply, RIGHT), prepare)])


def _input_scaled(spec: Linear, x: Array, *rest: Any) -> Any:
    made = multiply(RIGHT, spec, x, *rest)
    x += x.dtype.type(1)
    return made


def _unsupported_tile(spec: Linear, x: Array, *rest: Any) -> Any:
    """Says yes to any input axis, and computes in tiles of 64."""
    return multiply(replace(RIGHT, stop=lambda k: k if k < 64 else k // 64 * 64), spec, x, *rest)


BUGS: Sequence[Variant] = (
    tiles("input_tail_dropped", "triton #630", stop=lambda k: k if k < 32 else k // 32 * 32),
    kernel("input_tail_not_masked", "linear", "triton #1760", _unmasked_tail),
    kernel("unsupported_size_accepted", "linear", "sglang #39626", _unsupported_tile),
    each("output_tail_not_written", OURS, _tail_zeroed(1, 16)),
    each("token_tail_not_written", OURS, _tail_zeroed(0, 16)),
    each("result_transposed_when_square", OURS, lambda y, x: y.T.copy() if y.shape[0] == y.shape[1] else y),
    kernel("empty_batch_raises", "linear", "sglang #25919", _no_empty_batch),
    kernel("empty_batch_has_a_row", "linear", "sglang #25919", _empty_batch_of_one),
    kernel("contiguous_input_assumed", "linear", "aiter #3498", _contiguous_assumed),
    tiles("fused_parts_of_equal_size", OURS, weight=_equal_outputs),
    tiles("fused_parts_reversed", OURS, weight=lambda tensors, place: np.concatenate(list(tensors[::-1]))[: len(tensors[place])]),
    tiles("weight_transposed_when_square", OURS,
          weight=lambda t, place: t[place].T if t[place].shape[0] == t[place].shape[1] else t[place]),
    tiles("bias_twice", OURS, bias=lambda b, place: single(b[place]) * 2 if len(b) else None),
    tiles("bias_on_the_first_output_only", OURS, bias=lambda b, place: b[0] if len(b) and not place else None),
    tiles("bias_ignored", OURS, bias=lambda b, place: None),
    kernel("bias_before_rounding_twice", "linear", OURS,
           lambda spec, x, w, batch: multiply(
               replace(RIGHT, sum=lambda s: s.astype(DTYPES[spec.dtype]).astype(np.float32)), spec, x, w, batch)),
    tiles("sum_in_bfloat16", OURS, sum=bf16),
    tiles("sum_in_float16", OURS, sum=_half_sum),
    tiles("tf32_not_asked_for", OURS, wide=tf32),
    tiles("wide_result_rounded_to_bfloat16", OURS, out=bf16),
    kernel("wide_result_not_wide", "linear", OURS, lambda spec, *arrays: multiply(RIGHT, replace(spec, out_dtype=None), *arrays)),
    kernel("input_changed_in_place", "linear", OURS, _input_scaled),
    stateful("second_call_adds_up", "linear", "triton #187", _second_call),
    stateful("order_of_sums_varies", "linear", OURS, _atomics),
    stateful("one_output_buffer", "linear", OURS, _one_buffer),
    Variant("linear.weights_prepared_once_per_spec", "linear", "LMCache #1856, for weights", _stale_preparation, FAMILIES["linear"]),
    kernel("batch_invariance_broken_by_rows", "linear", "vLLM #40628", _by_rows, batch_invariant=True),
)
