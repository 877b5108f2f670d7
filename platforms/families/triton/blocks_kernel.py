"""Device code that moves whole blocks: within a group, and between blocks and the canonical form.

    state      [layers, blocks, heads, words of a block and head]
    canonical  [layers, heads, chosen blocks, words of a block and head]
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(state, sources, targets, words, layer_stride, BLOCK: tl.constexpr):
    """Block sources[i] onto block targets[i], in every layer; no block is both."""
    pair, part, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane = part * BLOCK + tl.arange(0, BLOCK)
    start = state + layer * layer_stride + lane
    source, target = tl.load(sources + pair).to(tl.int64), tl.load(targets + pair).to(tl.int64)
    inside = lane < words
    tl.store(start + target * words, tl.load(start + source * words, mask=inside), mask=inside)


@triton.jit
def exchange(state, canonical, blocks, count, heads, words, layer_stride, OUT: tl.constexpr, BLOCK: tl.constexpr):
    """OUT: from chosen blocks to the canonical form; otherwise back. A program has one block and head of one layer."""
    place, part, layer = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    index, head = place // heads, place % heads
    lane = part * BLOCK + tl.arange(0, BLOCK)
    inside = lane < words
    held = state + layer * layer_stride + (tl.load(blocks + index).to(tl.int64) * heads + head) * words + lane
    told = canonical + ((layer * heads + head) * count + index) * words + lane
    if OUT:
        tl.store(told, tl.load(held, mask=inside), mask=inside)
    else:
        tl.store(held, tl.load(told, mask=inside), mask=inside)
