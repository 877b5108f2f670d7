"""Planted bugs of quantized linears: scales, zero points and codes of the weight, and activations quantized on the fly."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import Kernel, Linear, Quantized, Scheme, always
from .linear import OURS, bf16, same, single
from .plant import FAMILIES, MutantPlatform, Run, Variant
from .quantized_product import RIGHT, Array, Parts, activations_of, by_integers, finished, multiply, nearest, weight_of
from .rows import quiet


def planted(name: str, source: str, run: Run, **fields: Any) -> Variant:
    """A kernel of a linear, tried on the quantized families alone. fields: of `Kernel`."""
    def platform() -> MutantPlatform:
        return MutantPlatform(kernels=[Kernel("linear", f"planted.{name}", always, quiet(run), **fields)])

    return Variant(f"quantized.{name}", "quantized", source, platform, FAMILIES["quantized"])


def ways(name: str, source: str, **wrong: Any) -> Variant:
    """The dequantized product with some decisions made wrong."""
    return planted(name, source, partial(multiply, replace(RIGHT, **wrong)))


# Codes.


def _swapped(part: Quantized, scheme: Scheme) -> Array:
    """The high half of a byte is taken for the first code."""
    codes = single(part.codes)
    if scheme.weight == "int4":
        even = codes.shape[1] // 2 * 2
        codes[:, :even] = codes[:, :even].reshape(len(codes), -1, 2)[:, :, ::-1].reshape(len(codes), -1)
    return codes


def _masked(weight: str, mask: int) -> Callable[[Quantized, Scheme], Array]:
    return lambda part, scheme: single(part.codes.astype(np.int32) & mask) if scheme.weight == weight else single(part.codes)


def _read_as(dtype: Any) -> Callable[[Quantized, Scheme], Array]:
    """The bits of an 8-bit float as those of another format."""
    return lambda part, scheme: single(part.codes.view(dtype)) if scheme.weight.startswith("float") else single(part.codes)


def _tail_of_the_row_below(part: Quantized, scheme: Scheme) -> Array:
    """The last tile of 4 columns is read one row too low."""
    codes = single(part.codes)
    full = codes.shape[1] // 4 * 4
    codes[:, full:] = np.roll(codes[:, full:], 1, axis=0)
    return codes


def _low_bits(part: Quantized, scheme: Scheme) -> Array:
    """The smallest code is clipped: -127 to 127."""
    codes = single(part.codes)
    return np.maximum(codes, -127) if scheme.weight == "int8" else codes


# Scales and zero points.


def _transposed(scales: Array, scheme: Scheme) -> Array:
    """Blocks are numbered down instead of across."""
    return single(np.ascontiguousarray(scales).reshape(scales.shape[::-1]).T)


def _as_bfloat16(scales: Array, scheme: Scheme) -> Array:
    """The bits of a float16 scale are read as a bfloat16."""
    return single(scales.view(ml_dtypes.bfloat16)) if scheme.scales == "float16" else single(scales)


def _without_zeros_behind(tile: int) -> Callable[[Array, Array], Array]:
    def subtract(codes: Array, zeros: Array) -> Array:
        full = codes.shape[1] // tile * tile
        return codes - np.where(np.arange(codes.shape[1]) < full, zeros, np.float32(0))

    return subtract


def _one_scale_for_the_sum(scales: Array, scheme: Scheme) -> Array:
    return np.repeat(single(scales)[:, -1:], scales.shape[1], axis=1)


def _scales_of_the_first(parts: Parts, place: int) -> Quantized:
    first = parts[0].scales[: len(parts[place].scales)]
    return parts[place]._replace(scales=first)


def _scales_kept_per_spec() -> MutantPlatform:
    """Another layer of the same shape gets its own codes and the first one's scales."""
    kept: dict[Linear, Any] = {}

    def prepare(spec: Linear, parts: Sequence[Any]) -> tuple[Any, ...]:
        scales = kept.setdefault(spec, [part.scales for part in parts if isinstance(part, Quantized)])
        changed = [part._replace(scales=old) for part, old in zip(parts, scales, strict=False)]
        return (*changed, *parts[len(scales):])

    run = quiet(partial(multiply, RIGHT))
    return MutantPlatform(kernels=[Kernel("linear", "planted.scales_kept_per_spec", always, run, prepare)])


# Activations.


def _activation_scales_kept() -> MutantPlatform:
    """Scales are measured in the first step, and kept for those of its shape."""
    kept: dict[Any, Array] = {}

    def run(spec: Linear, x: Array, *rest: Any) -> Any:
        way = replace(RIGHT, largest=lambda largest: kept.setdefault((spec, largest.shape), largest))
        return multiply(way, spec, x, *rest)

    return MutantPlatform(kernels=[Kernel("linear", "planted.activation_scales_kept", always, quiet(run))])


def _truncated(values: Array, dtype: str) -> Array:
    """Towards zero."""
    if dtype == "int8":
        return single(np.nan_to_num(np.trunc(values)).astype(np.int8))
    codes = values.astype(ml_dtypes.float8_e4m3fn)
    too_far = np.abs(single(codes)) > np.abs(values)
    return single(np.where(too_far, (codes.view(np.uint8) - 1).view(ml_dtypes.float8_e4m3fn), codes))


def _wrapped(values: Array, dtype: str) -> Array:
    """128 becomes -128."""
    return single(np.nan_to_num(np.rint(values)).astype(np.int32).astype(np.int8)) if dtype == "int8" else nearest(values, dtype)


def _saturated_early(values: Array, dtype: str) -> Array:
    """The largest 8-bit float is taken to be 240, as it is in the format without negative zero."""
    return nearest(np.clip(values, -240, 240), dtype) if dtype != "int8" else nearest(values, dtype)


def _unguarded(largest: Array, limit: Any) -> Array:
    return np.asarray(limit / largest)


def _unguarded_code(values: Array, dtype: str) -> Array:
    return single(np.where(np.isnan(values), np.nan, nearest(values, dtype)))


def _saturating_pairs(x: Array, tensor: Array) -> Array:
    """Unsigned by signed bytes, two products at a time in 16 bits, as vpmaddubsw adds them; 128 was added to each x."""
    if x.shape[1] % 2:
        x, tensor = np.pad(x, ((0, 0), (0, 1))), np.pad(tensor, ((0, 0), (0, 1)))
    total = np.zeros((len(x), len(tensor)))
    for at in range(0, x.shape[1], 2):
        total += np.clip((x[:, at : at + 2] + 128) @ tensor[:, at : at + 2].T, -32768, 32767)
    return total - 128 * tensor.sum(axis=1)


def _offset_not_corrected_in_the_tail(x: Array, tensor: Array) -> Array:
    """128 was added to each x, and is taken back in full tiles of 4 only."""
    full = x.shape[1] // 4 * 4
    return (x + 128) @ tensor.T - 128 * tensor[:, :full].sum(axis=1)


def _smallest_not_negated(x: Array, tensor: Array) -> Array:
    """|x| by the weight with the sign of x, as vpsignb gives it: -128 stays -128."""
    total = np.zeros((len(x), len(tensor)))
    for k in range(x.shape[1]):
        column = np.broadcast_to(tensor[None, :, k], total.shape)
        flipped = np.where(column == -128, column, -column)
        total += np.abs(x[:, k, None]) * np.where(x[:, k, None] < 0, flipped, column)
    return total


def _with_integers(dot: Callable[[Array, Array], Array]) -> Run:
    """`dot` where both sides are 8-bit integers; what is right elsewhere."""
    def run(spec: Linear, x: Array, weight: Sequence[Any], batch: Any) -> Any:
        scheme = spec.scheme or Scheme("int8")
        if scheme.activation == "int8" and not scheme.weight.startswith("float"):
            return by_integers(spec, x, weight, batch, dot)
        return by_integers(spec, x, weight, batch)

    return run


def _float16_sums(x: Array, tensor: Array) -> Array:
    return single((x @ tensor.T).astype(np.float16))


def _zeros_by_the_sum_of_x(spec: Linear, x: Array, weight: Sequence[Any], batch: Any) -> Any:
    """The zero point's part is taken from the sums of x itself, and not of its codes."""
    scheme, count = spec.scheme or Scheme("int8"), len(spec.outputs)
    quantized, plain = activations_of(RIGHT, x, scheme), single(x)
    made = []
    for part in weight[:count]:
        whole = weight_of(RIGHT, part._replace(zeros=None), scheme)
        offset = weight_of(RIGHT, part, scheme) - whole if part.zeros is not None else np.zeros_like(whole)
        made.append(quantized @ whole.T + plain @ offset.T)
    return finished(spec, made, weight, lambda place: single(weight[count + place]))


def _full_groups_only(places: Array, count: int) -> Array:
    """The number of groups is rounded down: a partial one has the scale before it."""
    partial_group = len(places) % int((places == 0).sum()) > 0
    return np.minimum(places, max(0, count - 2)) if partial_group else places


BUGS: Sequence[Variant] = (
    ways("scale_of_the_next_group", "mlx #3854", columns=lambda places, count: np.minimum(places + 1, count - 1)),
    ways("scale_of_the_last_full_group_in_the_tail", "vllm-ascend #9159", columns=_full_groups_only),
    ways("scale_of_the_last_full_block_of_rows", OURS, rows=_full_groups_only),
    ways("group_scale_on_the_whole_sum", OURS, scales=_one_scale_for_the_sum),
    ways("block_scales_transposed", "sglang #32839", scales=_transposed),
    ways("scales_in_bfloat16", OURS, scales=lambda scales, scheme: bf16(scales)),
    ways("float16_scales_read_as_bfloat16", OURS, scales=_as_bfloat16),
    ways("scales_taken_positive", OURS, scales=lambda scales, scheme: np.abs(single(scales))),
    ways("scales_of_the_first_output", OURS, part=_scales_of_the_first),
    Variant("quantized.scales_kept_per_spec", "quantized", "LMCache #1856, for scales", _scales_kept_per_spec, FAMILIES["quantized"]),
    ways("zero_point_added", OURS, subtract=np.add),
    ways("zero_point_of_the_first_group", OURS, subtract=lambda codes, zeros: codes - zeros[:, :1]),
    ways("zero_point_off_by_one", "vLLM #48810", subtract=lambda codes, zeros: codes - (zeros + 1)),
    ways("zero_point_forgotten_in_the_tail", OURS, subtract=_without_zeros_behind(4)),
    ways("zero_point_unsigned", OURS, subtract=lambda codes, zeros: codes - np.where(zeros < 0, zeros + 256, zeros)),
    planted("zero_point_by_the_sum_of_x", OURS, _zeros_by_the_sum_of_x),
    ways("nibbles_swapped", OURS, codes=_swapped),
    ways("nibble_not_sign_extended", OURS, codes=_masked("int4", 15)),
    ways("bytes_unsigned", OURS, codes=_masked("int8", 255)),
    ways("smallest_code_clipped", OURS, codes=_low_bits),
    ways("tail_of_the_row_below", OURS, codes=_tail_of_the_row_below),
    ways("codes_read_as_e5m2", OURS, codes=_read_as(ml_dtypes.float8_e5m2)),
    ways("codes_read_as_e4m3fnuz", "sglang #35111, read as it is", codes=_read_as(ml_dtypes.float8_e4m3fnuz)),
    ways("weight_in_bfloat16", OURS, tensor=bf16),
    ways("activation_scale_of_the_whole_step", OURS, largest=lambda largest: np.broadcast_to(
        largest.max(axis=0, keepdims=True, initial=0), largest.shape)),
    ways("activation_scale_of_the_row_above", OURS, tokens=lambda scales: np.roll(scales, 1, axis=0)),
    ways("activation_groups_ignored", OURS, group=lambda scheme: None),
    ways("activation_of_negatives_overflows", OURS, size=same, nearest=_wrapped),
    ways("activation_rounded_towards_zero", OURS, nearest=_truncated),
    ways("activation_of_128_wraps", OURS, limit=lambda limit: 128 if limit == 127 else limit, nearest=_wrapped),
    ways("activation_saturates_at_240", "ROCm/TransformerEngine #485", nearest=_saturated_early),
    ways("activation_scale_in_float16", OURS, tokens=lambda scales: single(scales.astype(np.float16))),
    ways("activation_rounded_to_bfloat16_first", OURS, x=bf16),
    ways("activation_of_nothing_divides", OURS, inverse=_unguarded, nearest=_unguarded_code),
    ways("nan_row_becomes_zero", OURS, tokens=lambda scales: np.where(np.isfinite(scales), scales, np.float32(0))),
    Variant("quantized.activation_scales_kept", "quantized", OURS, _activation_scales_kept, FAMILIES["quantized"]),
    planted("pairs_saturate_in_16_bits", "oneDNN #476", _with_integers(_saturating_pairs)),
    planted("offset_not_corrected_in_the_tail", "ROCm/triton #958, for a tail of 4", _with_integers(_offset_not_corrected_in_the_tail)),
    planted("smallest_code_not_negated", OURS, _with_integers(_smallest_not_negated)),
    planted("sums_in_float16", OURS, _with_integers(_float16_sums)),
    ways("bias_scaled", OURS, bias=lambda bias, scales: bias * float(scales.flat[0])),
)


# Legal variants: other orders, other roundings of a division.


def _divided(largest: Array, limit: Any) -> Array:
    """1 / scale: a reciprocal of what was rounded already."""
    found = np.float32(1) / (largest / limit)
    return np.where((largest > 0) & np.isfinite(found), found, np.float32(0))


def _splits(x: Array, tensor: Array) -> Array:
    parts = np.array_split(np.arange(x.shape[1]), 4)
    return np.stack([x[:, part] @ tensor[:, part].T for part in parts]).sum(axis=0, dtype=np.float32)


def _blocks(x: Array, tensor: Array) -> Array:
    total = np.zeros((len(x), len(tensor)), np.float32)
    for at in range(0, x.shape[1], 7):
        total += x[:, at : at + 7] @ tensor[:, at : at + 7].T
    return total


def _row_by_row(x: Array, tensor: Array) -> Array:
    total = np.zeros((len(x), len(tensor)), np.float32)
    for k in range(x.shape[1]):
        total += x[:, k, None] * tensor[None, :, k]
    return total


LEGAL: Sequence[Variant] = (
    planted("by_integers", "exact sums", by_integers),
    planted("offset_by_128", "unsigned by signed bytes", _with_integers(lambda x, t: (x + 128) @ t.T - 128 * t.sum(axis=1))),
    ways("dequantized_first", "float32 products"),
    ways("dequantized_in_blocks", "another tile", product=_blocks),
    ways("split_in_four", "split-K", product=_splits),
    planted("one_by_one", "batch-invariant, as it says", partial(multiply, replace(RIGHT, product=_row_by_row)), batch_invariant=True),
    ways("reciprocal_of_the_scale", "another rounding of a division", inverse=_divided),
    ways("times_the_reciprocal_of_the_limit", "another rounding of a division", tokens=lambda scales: np.where(
        np.isfinite(scales), np.nextafter(scales, np.float32(np.inf)), np.float32(np.nan))),
)
