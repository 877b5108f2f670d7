"""Planted bugs of what latent attention takes besides attention: head_linear, split and concat."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import Concat, HeadLinear, Split
from .plant import Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


def product(spec: HeadLinear, x: Array, weight: Sequence[Array]) -> Array:
    """The right way: each head by its own weight, float32 inside."""
    y = np.einsum("thi,hoi->tho", np.asarray(x, np.float32), np.asarray(weight[0], np.float32))
    return y.astype(x.dtype)


def heads(name: str, source: str, change: Callable[[Array, Array], tuple[Array, Array]]) -> Variant:
    """change: x [tokens, heads, input] and the weight [heads, output, input] -> the same, wrong."""
    def run(spec: HeadLinear, x: Array, weight: Sequence[Array]) -> Array:
        wrong, other = change(x, weight[0])
        return product(spec, wrong, [other])

    return kernel(name, "head_linear", source, run)


def _square_transposed(x: Array, weight: Array) -> tuple[Array, Array]:
    return x, weight.swapaxes(1, 2) if weight.shape[1] == weight.shape[2] else weight


def _tail_dropped(x: Array, weight: Array) -> tuple[Array, Array]:
    whole = x.shape[-1] if x.shape[-1] < 16 else x.shape[-1] // 16 * 16
    return x[..., :whole], weight[..., :whole]


def _by_token_and_head(spec: HeadLinear, x: Array, weight: Sequence[Array]) -> Array:
    """The result lies head by head, and is read as if it lay token by token."""
    made = product(spec, x, weight)
    return np.ascontiguousarray(made.transpose(1, 0, 2)).reshape(made.shape)


def _sum_in_bfloat16(spec: HeadLinear, x: Array, weight: Sequence[Array]) -> Array:
    return product(spec, x, weight).astype(ml_dtypes.bfloat16).astype(x.dtype)


def _adding_up() -> Callable[..., Array]:
    """The output is a workspace that only the first call finds zeroed."""
    kept: dict[Any, Array] = {}

    def run(spec: HeadLinear, x: Array, weight: Sequence[Array]) -> Array:
        kept[spec, x.shape] = (product(spec, x, weight) + kept.get((spec, x.shape), np.zeros((), x.dtype))).astype(x.dtype)
        return kept[spec, x.shape].copy()

    return run


def _pieces(spec: Split, x: Array, sizes: Sequence[int]) -> tuple[Array, ...]:
    return tuple(np.split(np.asarray(x), np.cumsum(sizes)[:-1], axis=-1))


def _equal(spec: Split, x: Array) -> tuple[Array, ...]:
    """Parts of one size where that is possible."""
    count, total = len(spec.sizes), sum(spec.sizes)
    if total % count:
        return _pieces(spec, x, spec.sizes)
    equal = _pieces(spec, x, (total // count,) * count)
    return tuple(np.resize(part, (*x.shape[:-1], size)) for part, size in zip(equal, spec.sizes, strict=True))


def _from_the_end(spec: Split, x: Array) -> tuple[Array, ...]:
    return _pieces(spec, x, spec.sizes[::-1])[::-1]


def _flat(spec: Concat, *parts: Array) -> Array:
    """All of the first part, then all of the second, as if there were one row."""
    return np.concatenate([np.ravel(part) for part in parts]).reshape(*parts[0].shape[:-1], sum(spec.sizes))


def _without_nan(spec: Concat, *parts: Array) -> Array:
    whole = np.concatenate(parts, axis=-1)
    return np.where(np.isnan(whole), np.zeros((), whole.dtype), whole)


BUGS: Sequence[Variant] = (
    heads("one_weight_for_all_heads", OURS, lambda x, weight: (x, np.broadcast_to(weight[:1], weight.shape))),
    heads("heads_one_late", OURS, lambda x, weight: (x, np.roll(weight, 1, axis=0))),
    heads("weight_transposed_when_square", OURS, _square_transposed),
    heads("input_tail_dropped", "triton #630", _tail_dropped),
    kernel("result_by_head_read_by_token", "head_linear", OURS, _by_token_and_head),
    kernel("sum_in_bfloat16", "head_linear", OURS, _sum_in_bfloat16),
    stateful("second_call_adds_up", "head_linear", "triton #187", _adding_up),
    kernel("parts_of_one_size", "split", OURS, _equal),
    kernel("sizes_from_the_end", "split", OURS, _from_the_end),
    kernel("parts_reversed", "concat", OURS, lambda spec, *parts: np.concatenate(parts[::-1], axis=-1)),
    kernel("rows_behind_each_other", "concat", OURS, _flat),
    kernel("nan_cleaned", "concat", OURS, _without_nan),
)
