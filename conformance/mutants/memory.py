"""Planted bugs of KV memory: write_kv, and a platform's own block operations."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import Packed, WriteKV
from ...ops.attention import coded
from ...platforms.contract import HostArrays
from ...platforms.families.numpy import HostState
from .plant import FAMILIES, MutantPlatform, Run, Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


@dataclass(frozen=True)
class Writer:
    """Each decision of the write; the defaults are right."""

    slots: Callable[[Any, int], Array] = lambda batch, size: batch.slots
    """(the group's rows, block_tokens) -> [tokens] slots."""
    tokens: Callable[[Array, Array], Array] = lambda slots, all_: all_
    """(slots, 0 .. tokens - 1) -> the tokens that are written."""
    strides: Callable[[Array], tuple[int, int, int]] = lambda array: (array.shape[1] * array.shape[2] * array.shape[3],
                                                                      array.shape[2] * array.shape[3], array.shape[3])
    """Elements between blocks, heads and tokens."""
    wrap: int = 2**62
    key: Callable[[Array, Array], Array] = lambda k, v: k
    value: Callable[[Array, Array], Array] = lambda k, v: v
    code: Callable[[Array, str], tuple[Array, Array]] = coded
    scaled: tuple[str, ...] = ("k_scale", "v_scale")
    """The scales that are written."""


RIGHT = Writer()


def write(way: Writer, spec: WriteKV, k: Array, v: Array, cell: Any, batch: Any) -> None:
    """By element offsets, as a kernel computes them."""
    size = cell.k.shape[2]
    slots = np.asarray(way.slots(batch.groups[cell.group], size)).astype(np.int64)
    chosen = way.tokens(slots, np.arange(len(slots)))
    sources = {"k": way.key(k, v)} if spec.latent else {"k": way.key(k, v), "v": way.value(k, v)}
    if spec.kv_dtype is not None:
        parts = {name: way.code(source, spec.kv_dtype) for name, source in sources.items()}
        sources = {name: codes for name, (codes, _) in parts.items()}
        sources |= {f"{name}_scale": scale for name, (_, scale) in parts.items() if f"{name}_scale" in way.scaled}
    for name, source in sources.items():
        target = getattr(cell, name)
        block, head, token = way.strides(target)
        start = slots[chosen] // size * block + slots[chosen] % size * token
        offsets = start[:, None, None] + np.arange(target.shape[1])[None, :, None] * head + np.arange(target.shape[3])
        target.reshape(-1)[offsets % way.wrap % target.size] = source[chosen]


def writer(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "write_kv", source, partial(write, replace(RIGHT, **wrong)))


def _codes(change: Callable[[Array, str], tuple[Array, Array]]) -> Callable[[Array, str], tuple[Array, Array]]:
    def quietly(x: Array, kv_dtype: str) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            return change(x, kv_dtype)

    return quietly


def _one_scale_for_all_heads(x: Array, kv_dtype: str) -> tuple[Array, Array]:
    flat, scale = coded(x.reshape(len(x), 1, -1), kv_dtype)
    return flat.reshape(x.shape), scale.repeat(x.shape[1], axis=1)


def _towards_zero(x: Array, kv_dtype: str) -> tuple[Array, Array]:
    _, scale = coded(x, kv_dtype)
    if kv_dtype != "int8":
        return coded(x, kv_dtype)
    return np.nan_to_num(np.trunc(x.astype(np.float32) / np.where(scale > 0, scale, 1))).astype(np.int8), scale


def _to_128(x: Array, kv_dtype: str) -> tuple[Array, Array]:
    """The whole range of int8, whose lowest code has no counterpart."""
    if kv_dtype != "int8":
        return coded(x, kv_dtype)
    largest = np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True)
    codes = np.clip(np.rint(x.astype(np.float32) * (np.float32(128) / np.where(largest > 0, largest, 1))), -128, 127)
    return np.nan_to_num(codes).astype(np.int8), largest / np.float32(128)


def _half_scales(x: Array, kv_dtype: str) -> tuple[Array, Array]:
    codes, scale = coded(x, kv_dtype)
    return codes, scale.astype(np.float16).astype(np.float32)


def _token_major(array: Array) -> tuple[int, int, int]:
    _, heads, size, dim = array.shape
    return heads * size * dim, dim, heads * dim


def _skipping() -> Run:
    """From the second call of a shape on, the copy is taken to be done."""
    seen: set[Any] = set()

    def run(spec: WriteKV, k: Array, v: Array, cell: Any, batch: Any) -> None:
        if (spec, batch.shape) not in seen:
            write(RIGHT, spec, k, v, cell, batch)
        seen.add((spec, batch.shape))

    return run


def _by_position(spec: WriteKV, k: Array, v: Array, cell: Any, batch: Any) -> None:
    """The slot is computed from the table of the token's row, and the row's number by its place."""
    size, table = cell.k.shape[2], batch.groups[cell.group].table
    slots = table[0][np.minimum(batch.positions // size, table.shape[1] - 1)] * size + batch.positions % size
    write(replace(RIGHT, slots=lambda rows, _: slots), spec, k, v, cell, batch)


def _whole_blocks(spec: WriteKV, k: Array, v: Array, cell: Any, batch: Any) -> None:
    """The rest of the last token's block is cleared with it."""
    write(RIGHT, spec, k, v, cell, batch)
    block, offset = np.divmod(batch.groups[cell.group].slots[-1:], cell.k.shape[2])
    for last, place in zip(block, offset, strict=True):
        cell.k[last, :, place + 1 :] = 0


def _contiguous(array: Array) -> Array:
    base = array.base
    start = base if isinstance(base, np.ndarray) and base.dtype == array.dtype and base.size >= array.size else array
    return np.ascontiguousarray(start).reshape(-1)[: array.size].reshape(array.shape)


def _through_bf16(array: Array) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(ml_dtypes.bfloat16).astype(array.dtype)


def _flushed(array: Array) -> Array:
    """Subnormals become zero: an exact copy keeps them."""
    return np.where(np.abs(array.astype(np.float64)) < float(ml_dtypes.finfo(array.dtype).smallest_normal), 0, array).astype(array.dtype)


WRITES = [
    writer("skipped", "vllm-plugin-FL #353", tokens=lambda slots, all_: all_[:0]),
    writer("keys_written_as_values", OURS, value=lambda k, v: np.resize(k, v.shape) if k.shape != v.shape else k),
    writer("values_not_written_where_dims_differ", OURS, value=lambda k, v: v if k.shape == v.shape else np.zeros_like(v)),
    writer("last_token_not_written", OURS, tokens=lambda slots, all_: all_[: max(1, len(all_) - 1)]),
    writer("tokens_past_16s_not_written", OURS, tokens=lambda slots, all_: all_ if len(all_) < 16 else all_[: len(all_) // 16 * 16]),
    writer("blocks_of_16_hard_coded", OURS, slots=lambda rows, size: rows.slots // 16 * size + rows.slots % 16 % size),
    writer("first_slot_of_a_block_in_the_one_before", "block edge",
           slots=lambda rows, size: np.where((rows.slots % size == 0) & (rows.slots >= size), rows.slots - 1, rows.slots)),
    writer("last_slot_of_a_block_in_the_next", "block edge",
           slots=lambda rows, size: np.where(rows.slots % size == size - 1, rows.slots + 1, rows.slots)),
    writer("slot_0_of_a_block_taken_for_padding", OURS, tokens=lambda slots, all_: all_[slots % 16 != 0]),
    writer("slots_one_late", "stale slot", slots=lambda rows, size: np.roll(rows.slots, 1)),
    writer("slots_taken_as_consecutive", "flashinfer #3219", slots=lambda rows, size: rows.slots[:1] + np.arange(len(rows.slots))),
    writer("heads_and_tokens_swapped_in_strides", "vLLM #50276", strides=_token_major),
    writer("offsets_in_too_few_bits", "vLLM #50427, emulated with 16 bits", wrap=2**16),
    replace(writer("offsets_in_32_bits", "vLLM #47671, #50427", wrap=2**32), families=("kv.far",)),
    writer("padding_written_to_the_last_block", "vLLM #57158",
           slots=lambda rows, size: np.where(rows.slots < size, rows.slots - size, rows.slots)),
    writer("contiguous_keys_assumed", "aiter #3498", key=lambda k, v: _contiguous(k)),
    writer("through_bfloat16", OURS, key=lambda k, v: _through_bf16(k)),
    writer("nan_cleaned", OURS, value=lambda k, v: np.where(np.isnan(v.astype(np.float64)), 0, v).astype(v.dtype)),
    writer("subnormals_flushed", OURS, value=lambda k, v: _flushed(v)),
    kernel("slots_from_the_first_row", "write_kv", OURS, _by_position),
    kernel("rest_of_the_block_cleared", "write_kv", "vLLM #50276", _whole_blocks),
    writer("key_scales_not_written", OURS, scaled=("v_scale",)),
    writer("value_scales_not_written", OURS, scaled=("k_scale",)),
    writer("one_scale_for_all_heads", OURS, code=_codes(_one_scale_for_all_heads)),
    writer("codes_rounded_towards_zero", OURS, code=_codes(_towards_zero)),
    writer("codes_down_to_minus_128", OURS, code=_codes(_to_128)),
    writer("scales_in_float16", OURS, code=_codes(_half_scales)),
    stateful("second_call_skips_the_copy", "write_kv", "flash-attention #2886", _skipping),
]


# Block operations.

class FirstLayerCopied(MutantPlatform):
    def copy_blocks(self, state: HostState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for array in state.groups[group].values():
            array[0, list(targets)] = array[0, list(sources)]


class KeysCopied(MutantPlatform):
    def copy_blocks(self, state: HostState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        array = state.groups[group]["k"]
        array[:, list(targets)] = array[:, list(sources)]


class ScalesForgotten(MutantPlatform):
    """Codes are copied and their scales stay behind."""

    def copy_blocks(self, state: HostState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        for name, array in state.groups[group].items():
            if not name.endswith("_scale"):
                array[:, list(targets)] = array[:, list(sources)]


class ScalesOfTheFirstBlock(MutantPlatform):
    """Blocks are read with the scales of the first one asked for."""

    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        first = super().read_blocks(state, group, [blocks[0]] * len(blocks))
        read = super().read_blocks(state, group, blocks)
        return {name: first[name] if name.endswith("_scale") else array for name, array in read.items()}


class CopiedBackwards(MutantPlatform):
    def copy_blocks(self, state: HostState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        super().copy_blocks(state, group, targets, sources)


class ReadInOrder(MutantPlatform):
    """The order of the blocks asked for is lost."""

    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        return super().read_blocks(state, group, sorted(blocks))


class ReadTokenMajor(MutantPlatform):
    """[layers, tokens, kv_heads, dim] under the canonical shape."""

    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        read = super().read_blocks(state, group, blocks)
        return {name: np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(array.shape) for name, array in read.items()}


class ReadThroughBfloat16(MutantPlatform):
    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        return {name: _through_bf16(array) for name, array in super().read_blocks(state, group, blocks).items()}


class ReadAsFloat32(MutantPlatform):
    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        return {name: array.astype(np.float32) for name, array in super().read_blocks(state, group, blocks).items()}


class WrittenInOrder(MutantPlatform):
    def write_blocks(self, state: HostState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        super().write_blocks(state, group, sorted(blocks), arrays)


class WrittenOnce(MutantPlatform):
    """A block that was written keeps its first content."""

    def write_blocks(self, state: HostState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        written = state.__dict__.setdefault("written", set())
        places = [place for place, block in enumerate(blocks) if block not in written]
        written.update(blocks)
        size = next(iter(state.groups[group].values())).shape[3]
        tokens = [place * size + offset for place in places for offset in range(size)]
        kept: Mapping[str, Array] = {name: array[:, :, tokens] for name, array in arrays.items()}
        super().write_blocks(state, group, [blocks[place] for place in places], kept)


class ReadTooEarly(MutantPlatform):
    """Blocks are read beside the steps, as they were when the last one was submitted."""

    def submit(self, compiled: Any, weights: Any, state: HostState, packed: Packed) -> Future[Any]:
        before = [{name: array.copy() for name, array in group.items()} for group in state.groups]
        pending = super().submit(compiled, weights, state, packed)
        state.__dict__["racing"] = (pending, before)
        waited = pending.result

        def result(timeout: float | None = None) -> Any:
            state.__dict__.pop("racing", None)
            return waited(timeout)

        pending.result = result  # type: ignore[method-assign]
        return pending

    def read_blocks(self, state: HostState, group: int, blocks: Sequence[int]) -> HostArrays:
        racing = state.__dict__.get("racing")
        if racing is None:
            return super().read_blocks(state, group, blocks)
        racing[0].exception()
        now, state.groups = state.groups, racing[1]
        early = super().read_blocks(state, group, blocks)
        state.groups = now
        return early


def platform(name: str, source: str, kind: Callable[[], MutantPlatform]) -> Variant:
    return Variant(f"blocks.{name}", "blocks", source, kind, FAMILIES["blocks"])


BLOCKS = [
    platform("only_the_first_layer_copied", OURS, FirstLayerCopied),
    platform("only_keys_copied", OURS, KeysCopied),
    platform("scales_not_copied", OURS, ScalesForgotten),
    platform("read_with_the_scales_of_the_first_block", OURS, ScalesOfTheFirstBlock),
    platform("copied_backwards", OURS, CopiedBackwards),
    platform("order_lost_in_reading", OURS, ReadInOrder),
    platform("tokens_before_heads_in_reading", OURS, ReadTokenMajor),
    platform("read_through_bfloat16", OURS, ReadThroughBfloat16),
    platform("read_as_float32", "LMCache #1856", ReadAsFloat32),
    platform("order_lost_in_writing", OURS, WrittenInOrder),
    platform("a_written_block_is_not_overwritten", OURS, WrittenOnce),
    platform("read_before_the_step_ended", "vLLM #45704", ReadTooEarly),
]

BUGS: Sequence[Variant] = (*WRITES, *BLOCKS)
