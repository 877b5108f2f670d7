"""The layout: how many blocks each group gets out of a memory budget, or for a wanted capacity."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import CapacityError
from ...ops.state import StateGroup


def blocks_spanned(positions: int, block_tokens: int) -> int:
    """The most blocks that so many consecutive positions can touch."""
    return (positions + block_tokens - 2) // block_tokens + 1 if positions else 0


def blocks_needed(group: StateGroup, positions: int, step_tokens: int = 1) -> int:
    """The most blocks that one sequence of `positions` holds at a time while `step_tokens` are computed in a step."""
    if group.kind == "recurrent":
        return 0
    whole = -(-positions // group.block_tokens)
    if group.window is None:
        return whole
    return min(whole, blocks_spanned(group.window - 1 + step_tokens, group.block_tokens))


@dataclass(frozen=True)
class Shape:
    """What the memory is for: `sequences` slots, each of up to `length_tokens`, computed `step_tokens` at a time."""

    sequences: int
    length_tokens: int
    step_tokens: int


@dataclass(frozen=True)
class Layout:
    """blocks: per group with the null block, 0 if recurrent. capacity_tokens: what full-length sequences can hold at once."""

    blocks: tuple[int, ...]
    memory_bytes: int
    capacity_tokens: int


def _bytes(groups: Sequence[StateGroup], blocks: Sequence[int], shape: Shape, itemsize: Mapping[str, int]) -> int:
    """A recurrent group has one row for each slot, the null slot too; a block's bytes are those of block_tokens rows."""
    total = 0
    for group, count in zip(groups, blocks, strict=True):
        row = group.block_bytes(itemsize) // group.block_tokens
        total += row * (shape.sequences + 1 if group.kind == "recurrent" else count * group.block_tokens)
    return total


def layout_for_tokens(groups: Sequence[StateGroup], capacity_tokens: int, shape: Shape, itemsize: Mapping[str, int]) -> Layout:
    """The smallest layout in which `capacity_tokens` of full-length sequences fit, and always at least one sequence."""
    blocks = []
    for group in groups:
        if group.kind == "recurrent":
            blocks.append(0)
            continue
        one = blocks_needed(group, shape.length_tokens, shape.step_tokens)
        blocks.append(1 + max(one, -(-one * capacity_tokens // shape.length_tokens)))
    return Layout(tuple(blocks), _bytes(groups, blocks, shape, itemsize), max(capacity_tokens, shape.length_tokens))


def layout_for_bytes(groups: Sequence[StateGroup], budget_bytes: int, shape: Shape, itemsize: Mapping[str, int]) -> Layout:
    """The largest layout within the budget. Raises CapacityError if not even one full-length sequence fits."""
    least = layout_for_tokens(groups, shape.length_tokens, shape, itemsize)
    if least.memory_bytes > budget_bytes:
        raise CapacityError(
            f"the KV memory may use {budget_bytes} bytes, and one sequence of {shape.length_tokens} tokens with "
            f"{shape.sequences} slots needs {least.memory_bytes}. Give it more memory, or lower max_model_len or max_num_seqs.")
    low, high = shape.length_tokens, 2 * shape.length_tokens
    if all(group.kind == "recurrent" for group in groups):
        return least
    while layout_for_tokens(groups, high, shape, itemsize).memory_bytes <= budget_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = layout_for_tokens(groups, middle, shape, itemsize).memory_bytes <= budget_bytes
        low, high = (middle, high) if fits else (low, middle)
    return layout_for_tokens(groups, low, shape, itemsize)
