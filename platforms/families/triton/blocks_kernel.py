"""Device code that moves whole blocks: within a group, and between blocks and the canonical form.

    state      [layers, blocks, heads, words of a block and head]
    canonical  [layers, heads, chosen blocks, words of a block and head]

A program has ROWS rows of BLOCK words; a row is one head of one block of one layer.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(state, sources, targets, rows, count, heads, words, layer_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Block sources[i] onto block targets[i], in every layer; no block is both."""
    layer, index, head, lane, exists, inside = _tile(rows, count, heads, words, ROWS, BLOCK)
    source = tl.load(sources + index, mask=exists, other=0).to(tl.int64)
    target = tl.load(targets + index, mask=exists, other=0).to(tl.int64)
    start = state + layer * layer_stride + lane
    values = tl.load(start + (source * heads + head) * words, mask=inside)
    tl.store(start + (target * heads + head) * words, values, mask=inside)


@triton.jit
def exchange(
    state, canonical, blocks, rows, count, heads, words, layer_stride, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """OUT: from chosen blocks to the canonical form; otherwise back."""
    layer, index, head, lane, exists, inside = _tile(rows, count, heads, words, ROWS, BLOCK)
    block = tl.load(blocks + index, mask=exists, other=0).to(tl.int64)
    held = state + layer * layer_stride + (block * heads + head) * words + lane
    told = canonical + ((layer * heads + head) * count + index) * words + lane
    if OUT:
        tl.store(told, tl.load(held, mask=inside), mask=inside)
    else:
        tl.store(held, tl.load(told, mask=inside), mask=inside)


@triton.jit
def _tile(rows, count, heads, words, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(layer, which of `count` blocks, head) in 64 bits, lane, whether a row exists, and whether the lane does as well."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    lane = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    exists = row < rows
    return row // (count * heads), row // heads % count, row % heads, lane, exists, exists & (lane < words)
