"""The C++ kernels as `Kernel`s: what each supports, its output arrays, and its weights in its own layout."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ops import DTYPES, Kernel, Spec, Support
from ...ops.sample import Sampled, Sampling, edited
from .library import NATIVE, layout, missing_reason
from .rotary import rotary_table

Array = np.ndarray[Any, Any]

PANEL = 64
"""Outputs that the C++ packs together."""

COMPUTED = ("float32", "bfloat16", "float16")


def native_kernels() -> Sequence[Kernel]:
    """In the order of ops. All keep a row's bits whatever its neighbours: sums run over k in one order for any shape."""
    return [
        Kernel(
            op, f"native.{op}", _supports(extra), run, prepare, batch_invariant=True, layout=layout() if prepare else "", replayable=True,
        )
        for op, run, prepare, extra in (
            ("derive", _derive, None, None),
            ("embedding", _embedding, None, None),
            ("linear", _linear, _pack, _plain_linear),
            ("gated_linear", _gated_linear, _pack_gated, _plain_gated),
            ("take_rows", _take_rows, None, None),
            ("add", _add, None, None),
            ("multiply", _multiply, None, None),
            ("scale", _scale, None, None),
            ("rms_norm", _rms_norm, None, None),
            ("add_rms_norm", _add_rms_norm, None, None),
            ("layer_norm", _layer_norm, None, None),
            ("rope", _rope, None, None),
            ("activation", _activation, None, None),
            ("gated_activation", _gated_activation, None, None),
            ("write_kv", _write_kv, None, _int8_cells),
            ("qkv_rope_write", _qkv_rope_write, None, _one_turn),
            ("attention", _attention, None, _int8_cells),
            ("sample", _sample, None, None),
        )
    ]


def _supports(extra: Callable[[Any], Support] | None) -> Callable[[Any], Support]:
    def supports(spec: Any) -> Support:
        dtype = getattr(spec, "dtype", "float32")
        if dtype not in COMPUTED:
            return f"computes in {', '.join(COMPUTED)}, not in {dtype}"
        return missing_reason() or (extra(spec) if extra else None)

    return supports


def _plain_linear(spec: Any) -> Support:
    if spec.scheme is not None:
        return f"has no kernel for the weight scheme {spec.scheme}"
    if spec.out_dtype not in (None, spec.dtype, "float32"):
        return f"answers in {spec.dtype} or float32, not in {spec.out_dtype}"
    return None


def _plain_gated(spec: Any) -> Support:
    return _plain_linear(spec.linear)


def _one_turn(spec: Any) -> Support:
    if spec.write.kv_dtype is not None or spec.write.latent:
        return "writes keys and values of their own dtype; write_kv writes codes and latent keys"
    same = all(getattr(spec.query, name) == getattr(spec.key, name) for name in ("frequencies", "scale", "interleaved", "head_dim"))
    return _int8_cells(spec.write) if same else "turns queries and keys alike, by one table"


class Packed(NamedTuple):
    """A fused weight in panels of 64 outputs, and a bias or None per output."""

    panels: Array
    biases: list[Array | None]


def _pack(spec: Any, parts: Sequence[Array]) -> Packed:
    """Part by part, so that a memory-mapped source is never held twice."""
    count, total = len(spec.outputs), sum(dim.size for dim in spec.outputs)
    panels = NATIVE.allocate(NATIVE.packed_bytes(total, spec.input.size, spec.dtype))
    first = 0
    for part in parts[:count]:
        NATIVE.pack_part(panels, total, first, np.ascontiguousarray(part))
        first += len(part)
    biases = [np.ascontiguousarray(part) for part in parts[count:]]
    return Packed(panels, [*biases] if biases else [None] * count)


def _pack_gated(spec: Any, parts: Sequence[Array]) -> Packed:
    """Panels of the gate and of the up take turns, so that 64 outputs of both are at hand together."""
    panels = NATIVE.allocate(NATIVE.packed_bytes(total := gated_rows(spec), spec.linear.input.size, spec.dtype))
    for place, part in enumerate(parts[:2]):
        part = np.ascontiguousarray(part)
        for row in range(0, len(part), PANEL):
            NATIVE.pack_part(panels, total, 2 * row + place * PANEL, part[row : row + PANEL])
    biases = [np.ascontiguousarray(part) for part in parts[2:]]
    return Packed(panels, [*biases] if biases else [None, None])


def gated_rows(spec: Any) -> int:
    """Of the packed weight of a `GatedLinear`: whole panels of both outputs."""
    return 2 * -(-spec.linear.outputs[0].size // PANEL) * PANEL


def _gated_linear(spec: Any, x: Array, weight: Packed, batch: Any) -> Array:
    out = NATIVE.empty((len(x), spec.linear.outputs[0].size), x.dtype)
    NATIVE.gated_linear(np.ascontiguousarray(x), weight.panels, out, weight.biases, spec.activation.kind)
    return out


def _linear(spec: Any, x: Array, weight: Packed, batch: Any) -> Any:
    dtype = DTYPES[spec.out_dtype or spec.dtype]
    outs = [NATIVE.empty((len(x), dim.size), dtype) for dim in spec.outputs]
    NATIVE.linear(np.ascontiguousarray(x), weight.panels, outs, weight.biases)
    return tuple(outs) if len(outs) > 1 else outs[0]


def _derive(spec: Spec, batch: Any, state: Any) -> Any:
    tokens = NATIVE.empty(batch.tokens.shape, np.int32)
    NATIVE.derive(batch.tokens, batch.source, state.last_token, tokens)
    return batch._replace(tokens=tokens)


def _embedding(spec: Any, tokens: Array, weight: tuple[Array, ...]) -> Array:
    return _take_rows(spec, weight[0], tokens)


def _take_rows(spec: Any, x: Array, rows: Array) -> Array:
    out = NATIVE.empty((len(rows), x.shape[1]), x.dtype)
    NATIVE.take_rows(np.ascontiguousarray(x), np.ascontiguousarray(rows), out)
    return out


def _add(spec: Spec, a: Array, b: Array) -> Array:
    out = NATIVE.empty(a.shape, a.dtype)
    NATIVE.add(np.ascontiguousarray(a), np.ascontiguousarray(b), out)
    return out


def _multiply(spec: Spec, a: Array, b: Array) -> Array:
    out = NATIVE.empty(a.shape, a.dtype)
    NATIVE.multiply(np.ascontiguousarray(a), np.ascontiguousarray(b), out)
    return out


def _scale(spec: Any, x: Array) -> Array:
    out = NATIVE.empty(x.shape, x.dtype)
    NATIVE.scale(np.ascontiguousarray(x), spec.factor, out)
    return out


def _rms_norm(spec: Any, x: Array, weight: tuple[Array, ...]) -> Array:
    out = NATIVE.empty(x.shape, x.dtype)
    NATIVE.rms_norm(np.ascontiguousarray(x), weight[0], spec.epsilon, spec.offset, out)
    return out


def _add_rms_norm(spec: Any, x: Array, residual: Array, weight: tuple[Array, ...]) -> tuple[Array, Array]:
    out, total = NATIVE.empty(x.shape, x.dtype), NATIVE.empty(x.shape, x.dtype)
    norm = spec.norm
    NATIVE.add_rms_norm(np.ascontiguousarray(x), np.ascontiguousarray(residual), weight[0], norm.epsilon, norm.offset, out, total)
    return out, total


def _layer_norm(spec: Any, x: Array, weight: tuple[Array, ...]) -> Array:
    out = NATIVE.empty(x.shape, x.dtype)
    NATIVE.layer_norm(np.ascontiguousarray(x), weight[0], weight[1] if spec.bias else None, spec.epsilon, out)
    return out


def _rope(spec: Any, x: Array, batch: Any) -> Array:
    out = NATIVE.empty(x.shape, x.dtype)
    table, positions = rotary_table(spec, batch.positions)
    NATIVE.rope(np.ascontiguousarray(x), positions, table, spec.interleaved, out)
    return out


def _activation(spec: Any, x: Array) -> Array:
    out = NATIVE.empty(x.shape, x.dtype)
    NATIVE.activation(np.ascontiguousarray(x), spec.kind, out)
    return out


def _gated_activation(spec: Any, gate: Array, up: Array) -> Array:
    out = NATIVE.empty(gate.shape, gate.dtype)
    NATIVE.gated_activation(np.ascontiguousarray(gate), np.ascontiguousarray(up), spec.kind, out)
    return out


def _int8_cells(spec: Any) -> Support:
    return None if spec.kv_dtype in (None, "int8") else f"keeps keys and values in their own dtype or as int8 codes, not as {spec.kv_dtype}"


def _scales(spec: Any, cell: Any) -> tuple[Array | None, Array | None]:
    if spec.kv_dtype is None:
        return None, None
    return cell.k_scale, None if spec.latent else cell.v_scale


def _write_kv(spec: Any, k: Array, v: Array | None, cell: Any, batch: Any) -> None:
    values = (None, None) if v is None else (np.ascontiguousarray(v), cell.v)
    NATIVE.write_kv(np.ascontiguousarray(k), values[0], cell.k, values[1], batch.groups[cell.group].slots, *_scales(spec, cell))


def _qkv_rope_write(spec: Any, q: Array, k: Array, v: Array, cell: Any, batch: Any) -> Array:
    out = NATIVE.empty(q.shape, q.dtype)
    table, positions = rotary_table(spec.query, batch.positions)
    NATIVE.qkv_rope_write(
        np.ascontiguousarray(q), np.ascontiguousarray(k), np.ascontiguousarray(v), positions, table, spec.query.interleaved, out,
        cell.k, cell.v, batch.groups[cell.group].slots, *_scales(spec.write, cell),
    )
    return out


def _attention(spec: Any, q: Array, cell: Any, batch: Any, sinks: tuple[Array, ...] | None = None) -> Array:
    out = NATIVE.empty((*q.shape[:2], spec.value_dim), q.dtype)
    NATIVE.attention(
        np.ascontiguousarray(q), cell.k, None if spec.latent else cell.v, out, batch.groups[cell.group].table, batch.starts, batch.lengths,
        spec.scale, spec.window or 0, spec.softcap or 0.0, sinks[0].astype(np.float32) if sinks else None,
        None if spec.alibi is None else np.array(spec.alibi, np.float32), *_scales(spec, cell),
    )
    return out


def _sample(spec: Any, logits: Array, sampling: Sampling, batch: Any, state: Any) -> Sampled:
    tokens = np.empty(len(logits), np.int32)
    changed = np.ascontiguousarray(edited(logits, sampling))
    s = sampling
    NATIVE.sample(changed, s.temperature, s.top_k, s.top_p, s.min_p, s.seed_low, s.seed_high, s.index, s.position, tokens)
    NATIVE.keep(tokens, batch.sample_slot, state.last_token)
    if batch.shape.logprobs < 0:
        return Sampled(tokens)
    return Sampled(tokens, *_logprobs(logits, tokens, batch.shape.logprobs))


def _logprobs(logits: Array, tokens: Array, count: int) -> tuple[Array, Array, Array]:
    """(of the tokens [samples], the `count` likeliest ids and their values [samples, count])."""
    samples, vocab = logits.shape
    logits, count = np.ascontiguousarray(logits), min(count, vocab)
    chosen = np.empty(samples, np.float32)
    best, values = np.empty((samples, count), np.int32), np.empty((samples, count), np.float32)
    NATIVE.logprobs(logits, tokens, chosen)
    if count:
        NATIVE.top_logprobs(logits, best, values)
    return chosen, best, values
