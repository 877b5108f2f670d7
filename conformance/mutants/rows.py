"""Planted bugs of the ops on rows: norms, rope, activations, sums, and rows picked by index."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import AddRmsNorm, LayerNorm, QkvRopeWrite, RmsNorm, Rope
from ...ops.elementwise import FORMULAS
from .plant import Run, Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


def single(array: Any) -> Array:
    return np.asarray(array, np.float32)


def bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def quiet(run: Run) -> Run:
    """Without NumPy's warnings."""
    def silent(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return run(*arguments)

    return silent


# Norms.

def rms(spec: RmsNorm, x: Array, weight: Sequence[Array], *, mean: Callable[[Array], Array] = lambda s: s.mean(axis=-1, keepdims=True),
        scale: Callable[[Array, float], Array] = lambda m, epsilon: 1 / np.sqrt(m + np.float32(epsilon)),
        normal: Callable[[Array], Array] = lambda y: y,
        gain: Callable[[Array, float], Array] = lambda w, offset: w + np.float32(offset)) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * (weight + offset) in float32; each part can be got wrong."""
    values = single(x)
    return (normal(values * scale(mean(values * values), spec.epsilon)) * gain(single(weight[0]), spec.offset)).astype(x.dtype)


def layer(spec: LayerNorm, x: Array, weight: Sequence[Array], *,
          center: Callable[[Array], Array] = lambda v: v - v.mean(axis=-1, keepdims=True),
          mean: Callable[[Array, Array], Array] = lambda v, c: (c * c).mean(axis=-1, keepdims=True),
          bias: Callable[[Array], Array] = lambda b: b) -> Array:
    values = single(x)
    centered = center(values)
    y = centered / np.sqrt(mean(values, centered) + np.float32(spec.epsilon)) * single(weight[0])
    return (y + bias(single(weight[1])) if spec.bias else y).astype(x.dtype)


def add_rms(spec: AddRmsNorm, x: Array, residual: Array, weight: Sequence[Array], *, total: Callable[[Array], Array] = lambda t: t,
            told: Callable[[Array, Array], Array] = lambda total, x: total, norm: Callable[..., Array] = rms) -> tuple[Array, Array]:
    sum_ = total(single(x) + single(residual))
    return norm(spec.norm, sum_, weight).astype(x.dtype), told(sum_, single(x)).astype(x.dtype)


def _tail_left_out(squares: Array) -> Array:
    """Sums of full vectors of 16, divided by the whole size."""
    size = squares.shape[-1]
    return squares[..., : size if size < 16 else size // 16 * 16].sum(axis=-1, keepdims=True) / np.float32(size)


def _half_sum(squares: Array) -> Array:
    return squares.astype(np.float16).mean(axis=-1, keepdims=True, dtype=np.float16).astype(np.float32)


def _first_axis(squares: Array) -> Array:
    return squares.mean(axis=0, keepdims=True)


def _stale_scale() -> Run:
    """The scale of a row is kept from the last call of that shape."""
    kept: dict[Any, Array] = {}

    def run(spec: RmsNorm, x: Array, weight: Sequence[Array]) -> Array:
        return rms(spec, x, weight, mean=lambda s: kept.setdefault((spec, s.shape), s.mean(axis=-1, keepdims=True)))

    return run


def _residual_in_place(spec: AddRmsNorm, x: Array, residual: Array, weight: Sequence[Array]) -> tuple[Array, Array]:
    """The usual fused form, which this op is not."""
    normal, total = add_rms(spec, x, residual, weight)
    residual[...] = total
    return normal, residual


NORMS = [
    kernel("epsilon_outside_the_root", "rms_norm", OURS, quiet(partial(rms, scale=lambda m, e: 1 / (np.sqrt(m) + np.float32(e))))),
    kernel("epsilon_ignored", "rms_norm", OURS, quiet(partial(rms, scale=lambda m, e: 1 / np.sqrt(m)))),
    kernel("epsilon_hard_coded", "rms_norm", OURS, partial(rms, scale=lambda m, e: 1 / np.sqrt(m + np.float32(1e-6)))),
    kernel("mean_over_the_tokens", "rms_norm", OURS, quiet(partial(rms, mean=_first_axis))),
    kernel("variance_for_mean_square", "rms_norm", OURS,
           lambda spec, x, weight: rms(spec, x, weight, mean=lambda s: single(x).var(axis=-1, keepdims=True))),
    kernel("sum_for_mean", "rms_norm", OURS, partial(rms, mean=lambda s: s.sum(axis=-1, keepdims=True))),
    kernel("offset_ignored", "rms_norm", OURS, partial(rms, gain=lambda w, offset: w)),
    kernel("offset_always", "rms_norm", OURS, partial(rms, gain=lambda w, offset: w + 1)),
    kernel("tail_left_out_of_the_mean", "rms_norm", "triton #630", partial(rms, mean=_tail_left_out)),
    kernel("squares_in_float16", "rms_norm", OURS, quiet(partial(rms, mean=_half_sum))),
    kernel("normal_rounded_before_the_weight", "rms_norm", OURS, partial(rms, normal=bf16)),
    kernel("rsqrt_without_newton", "rms_norm", OURS,
           partial(rms, scale=lambda m, e: (1 / np.sqrt(m + np.float32(e))).astype(np.float16).astype(np.float32))),
    stateful("scale_kept_from_the_last_call", "rms_norm", "triton #187", _stale_scale),
    kernel("mean_not_taken_off", "layer_norm", OURS, partial(layer, center=lambda v: v)),
    kernel("variance_by_mean_of_squares", "layer_norm", "cancellation",
           quiet(partial(layer, mean=lambda v, c: (v * v).mean(axis=-1, keepdims=True) - v.mean(axis=-1, keepdims=True) ** 2))),
    kernel("unbiased_variance", "layer_norm", OURS,
           partial(layer, mean=lambda v, c: (c * c).sum(axis=-1, keepdims=True) / max(1, v.shape[-1] - 1))),
    kernel("bias_ignored", "layer_norm", OURS, partial(layer, bias=lambda b: b * 0)),
    kernel("bias_twice", "layer_norm", OURS, partial(layer, bias=lambda b: b * 2)),
    kernel("residual_not_added", "add_rms_norm", OURS, lambda spec, x, residual, weight: add_rms(spec, x, residual * 0, weight)),
    kernel("norm_of_x_alone", "add_rms_norm", OURS,
           lambda spec, x, residual, weight: (rms(spec.norm, x, weight), add_rms(spec, x, residual, weight)[1])),
    kernel("sum_told_after_the_norm", "add_rms_norm", OURS, lambda spec, x, residual, weight: (add_rms(spec, x, residual, weight)[0],) * 2),
    kernel("x_told_for_the_sum", "add_rms_norm", OURS, partial(add_rms, told=lambda total, x: x)),
    kernel("results_swapped", "add_rms_norm", OURS, lambda *arguments: add_rms(*arguments)[::-1]),
    kernel("sum_in_bfloat16", "add_rms_norm", OURS, partial(add_rms, total=bf16)),
    kernel("residual_changed_in_place", "add_rms_norm", OURS, _residual_in_place),
]


# Rope.

def turn(spec: Rope, x: Array, batch: Any, *, angles: Callable[[Rope, Array], Array] = lambda spec, at: spec.angles(at),
         sign: float = 1.0, interleaved: Callable[[Rope], bool] = lambda spec: spec.interleaved,
         scale: Callable[[Rope], float] = lambda spec: spec.scale) -> Array:
    """The rotation in float32 from float64 sines; each part can be got wrong."""
    turned = angles(spec, np.asarray(batch.positions)).astype(np.float64)[:, None, :]
    cos, sin = single(np.cos(turned) * scale(spec)), single(np.sin(turned) * scale(spec)) * np.float32(sign)
    half, y, values = len(spec.frequencies), single(x).copy(), single(x)
    first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved(spec) else (slice(0, half), slice(half, 2 * half))
    y[..., first] = values[..., first] * cos - values[..., second] * sin
    y[..., second] = values[..., second] * cos + values[..., first] * sin
    return y.astype(x.dtype)


def _whole_head(spec: Rope, x: Array, batch: Any) -> Array:
    """Partial rotation pairs dims across the whole head."""
    half, middle = len(spec.frequencies), spec.head_dim // 2
    order = np.arange(spec.head_dim)
    if not spec.interleaved and 2 * half < spec.head_dim:
        order = np.concatenate([np.arange(half), middle + np.arange(half),
                                np.arange(half, middle), np.arange(middle + half, spec.head_dim)])
    out = np.empty_like(x)
    out[..., order] = turn(spec, np.ascontiguousarray(x[..., order]), batch)
    return out


def _rest_scaled(spec: Rope, x: Array, batch: Any) -> Array:
    out = turn(spec, x, batch)
    out[..., 2 * len(spec.frequencies) :] *= x.dtype.type(spec.scale)
    return out


def _by_place(spec: Rope, at: Array) -> Array:
    """Tokens are taken to follow each other from the first position."""
    return spec.angles(at[:1] + np.arange(len(at)))


def turn_and_write(spec: QkvRopeWrite, q: Array, k: Array, v: Array, cell: Any, batch: Any, *,
                   key: Callable[[QkvRopeWrite, Array, Any], Array] = lambda spec, k, batch: turn(spec.key, k, batch),
                   value: Callable[[QkvRopeWrite, Array, Any], Array] = lambda spec, v, batch: v) -> Array:
    """Each of the three can be got wrong."""
    spec.write.reference(key(spec, k, batch), value(spec, v, batch), cell, batch)
    return turn(spec.query, q, batch)


def rope(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "rope", source, partial(turn, **wrong))


ROPE = [
    rope("halves_for_pairs", OURS, interleaved=lambda spec: False),
    rope("pairs_for_halves", OURS, interleaved=lambda spec: True),
    rope("turned_backwards", OURS, sign=-1.0),
    rope("scale_dropped", OURS, scale=lambda spec: 1.0),
    rope("scale_twice", OURS, scale=lambda spec: spec.scale**2),
    rope("positions_in_16_bits", OURS, angles=lambda spec, at: spec.angles(at % 2**16)),
    rope("positions_past_a_table", "tables of 2^17 positions", angles=lambda spec, at: spec.angles(np.minimum(at, 2**17 - 1))),
    rope("positions_in_bfloat16", OURS, angles=lambda spec, at: spec.angles(bf16(single(at)))),
    rope("frequencies_in_bfloat16", OURS, angles=lambda spec, at: single(at)[:, None] * bf16(single(spec.frequencies))),
    rope("angles_not_rounded", "not what checkpoints were trained with",
         angles=lambda spec, at: at[:, None] * np.asarray(spec.frequencies, np.float64)),
    rope("position_one_late", OURS, angles=lambda spec, at: spec.angles(at + 1)),
    rope("positions_by_place", OURS, angles=_by_place),
    kernel("partial_rotation_across_the_head", "rope", OURS, _whole_head),
    kernel("unturned_dims_scaled", "rope", OURS, _rest_scaled),
    kernel("unturned_dims_zero", "rope", OURS,
           lambda spec, x, batch: np.where(np.arange(spec.head_dim) < 2 * len(spec.frequencies), turn(spec, x, batch), 0).astype(x.dtype)),
]


QKV_ROPE_WRITE = [
    kernel("key_written_unturned", "qkv_rope_write", OURS, partial(turn_and_write, key=lambda spec, k, batch: k)),
    kernel("key_turned_twice", "qkv_rope_write", OURS,
           partial(turn_and_write, key=lambda spec, k, batch: turn(spec.key, turn(spec.key, k, batch), batch))),
    kernel("key_in_bfloat16", "qkv_rope_write", OURS,
           partial(turn_and_write, key=lambda spec, k, batch: bf16(turn(spec.key, k, batch)).astype(k.dtype))),
    kernel("value_scaled_like_the_key", "qkv_rope_write", OURS,
           partial(turn_and_write, value=lambda spec, v, batch: (v * spec.key.scale).astype(v.dtype))),
]


# Elementwise.

def activate(spec: Any, x: Array, kind: str | None = None) -> Array:
    return np.asarray(FORMULAS[kind or spec.kind](np.asarray(x, np.float64))).astype(x.dtype)


def _quick_gelu(spec: Any, x: Array) -> Array:
    wide = np.asarray(x, np.float64)
    return (wide / (1 + np.exp(-1.702 * wide))).astype(x.dtype) if spec.kind.startswith("gelu") else activate(spec, x)


def _unsafe_silu(spec: Any, x: Array) -> Array:
    """x * e^x / (1 + e^x): inf / inf for large x."""
    power = np.exp(single(x))
    return (single(x) * power / (1 + power)).astype(x.dtype) if spec.kind == "silu" else activate(spec, x)


def _relu_of_nan(spec: Any, x: Array) -> Array:
    return np.where(x > 0, x, 0).astype(x.dtype) if spec.kind == "relu" else activate(spec, x)


def _tanh_by_exponentials(spec: Any, x: Array) -> Array:
    """(e^2x - 1) / (e^2x + 1): cancels near 0, inf / inf for large x."""
    power = np.exp(2 * single(x))
    return ((power - 1) / (power + 1)).astype(x.dtype) if spec.kind == "tanh" else activate(spec, x)


def _dropped_tail(spec: Any, a: Array, b: Array) -> Array:
    out = (single(a) + single(b)).astype(a.dtype)
    out.reshape(-1)[out.size // 8 * 8 :] = a.reshape(-1)[out.size // 8 * 8 :]
    return out


def _in_place(spec: Any, a: Array, b: Array) -> Array:
    """`+=` aliases, as it does in torch."""
    a += b
    return a


def _doubled(run: Run) -> Run:
    """One output buffer for each spec and shape."""
    kept: dict[Any, Array] = {}

    def again(spec: Any, *arrays: Array) -> Array:
        out = run(spec, *arrays)
        buffer = kept.setdefault((spec, out.shape), out)
        buffer[...] = out
        return buffer

    return again


def add(spec: Any, a: Array, b: Array) -> Array:
    return (single(a) + single(b)).astype(a.dtype)


ELEMENTWISE = [
    kernel("tanh_for_erf", "activation", OURS, quiet(lambda spec, x: activate(spec, x, "gelu_tanh" if spec.kind == "gelu" else None))),
    kernel("erf_for_tanh", "activation", OURS, quiet(lambda spec, x: activate(spec, x, "gelu" if spec.kind == "gelu_tanh" else None))),
    kernel("quick_gelu", "activation", OURS, quiet(_quick_gelu)),
    kernel("silu_overflows", "activation", OURS, quiet(_unsafe_silu)),
    kernel("relu_of_nan_is_zero", "activation", OURS, quiet(_relu_of_nan)),
    kernel("tanh_by_exponentials", "activation", OURS, quiet(_tanh_by_exponentials)),
    kernel("up_activated_instead_of_gate", "gated_activation", OURS,
           quiet(lambda spec, gate, up: (activate(spec, up) * gate).astype(gate.dtype))),
    kernel("tanh_for_erf", "gated_activation", OURS,
           quiet(lambda spec, gate, up: (activate(spec, gate, "gelu_tanh" if spec.kind == "gelu" else None) * up).astype(gate.dtype))),
    kernel("gate_not_activated", "gated_activation", OURS, quiet(lambda spec, gate, up: (gate * up).astype(gate.dtype))),
    kernel("tail_not_added", "add", "triton #630", quiet(_dropped_tail)),
    kernel("first_operand_changed", "add", OURS, quiet(_in_place)),
    kernel("sum_in_bfloat16", "add", OURS, quiet(lambda spec, a, b: bf16(single(a) + single(b)).astype(a.dtype))),
    stateful("one_output_buffer", "add", OURS, lambda: quiet(_doubled(add))),
    kernel("sum_for_product", "multiply", OURS, quiet(add)),
    kernel("nan_times_zero_is_zero", "multiply", OURS, quiet(lambda spec, a, b: np.where((a == 0) | (b == 0), 0, a * b).astype(a.dtype))),
    kernel("bfloat16_widened", "multiply", "NumPy's own promotion", quiet(lambda spec, a, b: single(a) * single(b))),
    kernel("factor_in_the_dtype", "scale", OURS, quiet(lambda spec, x: (x * x.dtype.type(spec.factor)).astype(x.dtype))),
    kernel("factor_inverted", "scale", OURS, quiet(lambda spec, x: (single(x) / np.float32(spec.factor or 1)).astype(x.dtype))),
    kernel("factor_twice", "scale", OURS, quiet(lambda spec, x: (single(x) * np.float32(spec.factor) ** 2).astype(x.dtype))),
]


# Rows picked by index.

def _unique(spec: Any, x: Array, rows: Array) -> Array:
    """Rows come back once each, in order."""
    return np.resize(np.asarray(x)[np.unique(rows)], (len(rows), x.shape[1])).astype(x.dtype) if len(rows) else np.asarray(x)[rows]


def _without_nan(array: Array) -> Array:
    return np.where(np.isnan(array.astype(np.float64)), 0, array).astype(array.dtype)


def _narrow(spec: Any, tokens: Array, weight: Sequence[Array]) -> Array:
    return np.asarray(weight[0])[tokens % 2**12 if len(weight[0]) > 2**12 else tokens]


def _as_if_contiguous(spec: Any, x: Array, rows: Array) -> Array:
    start = x if x.base is None or x.base.size < x.size else x.base
    return np.ascontiguousarray(start).reshape(-1)[: x.size].reshape(x.shape)[rows]


LOOKUP = [
    kernel("last_id_clamped", "embedding", OURS,
           lambda spec, tokens, weight: np.asarray(weight[0])[np.minimum(tokens, max(0, len(weight[0]) - 2))]),
    kernel("ids_one_late", "embedding", OURS, lambda spec, tokens, weight: np.asarray(weight[0])[tokens - 1]),
    kernel("ids_in_12_bits", "embedding", "vLLM #50427, emulated", _narrow),
    kernel("nan_cleaned", "embedding", OURS, lambda spec, tokens, weight: _without_nan(np.asarray(weight[0])[tokens])),
    kernel("row_zero_is_padding", "embedding", OURS,
           lambda spec, tokens, weight: np.where((tokens == 0)[:, None], 0, np.asarray(weight[0])[tokens]).astype(weight[0].dtype)),
    kernel("through_bfloat16", "embedding", OURS,
           quiet(lambda spec, tokens, weight: bf16(np.asarray(weight[0])[tokens]).astype(weight[0].dtype))),
    kernel("each_row_once", "take_rows", OURS, _unique),
    kernel("rows_sorted", "take_rows", OURS, lambda spec, x, rows: np.asarray(x)[np.sort(rows)]),
    kernel("last_row_always", "take_rows", OURS,
           lambda spec, x, rows: np.asarray(x)[np.where(rows == rows.max(initial=0), len(x) - 1, rows)]),
    kernel("contiguous_input_assumed", "take_rows", "aiter #3498",
           _as_if_contiguous),
    stateful("one_output_buffer", "take_rows", OURS, lambda: _doubled(lambda spec, x, rows: np.asarray(x)[rows])),
    kernel("source_0_ignored", "derive", OURS,
           lambda spec, batch, state: spec.reference(batch._replace(source=np.where(batch.source == 0, -1, batch.source)), state)),
    kernel("source_one_late", "derive", OURS,
           lambda spec, batch, state: spec.reference(
               batch._replace(source=np.where(batch.source > 0, batch.source - 1, batch.source)), state)),
    kernel("every_token_from_its_slot", "derive", OURS,
           lambda spec, batch, state: spec.reference(batch._replace(source=np.maximum(batch.source, 0)), state)),
    kernel("last_tokens_forgotten", "derive", OURS, lambda spec, batch, state: _forgetting(spec, batch, state)),
]


def _forgetting(spec: Any, batch: Any, state: Any) -> Any:
    """A slot's token is taken out when it is read."""
    derived = spec.reference(batch, state)
    state.last_token[batch.source[batch.source >= 0]] = 0
    return derived


BUGS: Sequence[Variant] = (*NORMS, *ROPE, *QKV_ROPE_WRITE, *ELEMENTWISE, *LOOKUP)
