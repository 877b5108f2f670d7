"""Device code of router and moe: the best experts of a token, pairs of (token, rank) in tiles of one expert each, two products, a sum.

    pair [tiles, BLOCK_ROWS]    which pair a lane of a tile computes, -1: none; a tile's first lane is used or none is
    hidden [pairs, mlp]         activation(gate x) * up x of the pair's token
    made [pairs, embed]         down hidden
    out [tokens, embed]         the sum of weight * made, from the first rank to the last
"""
from __future__ import annotations

import triton
import triton.language as tl

from .rows_kernel import formula


@triton.jit
def router(
    chosen, weights, logits, rows, experts, row_stride, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    LANES: tl.constexpr, PLACES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):
    """logits [rows, experts] float32 -> chosen and weights [rows, TOP_K], best first, ties to the lowest id.

    LANES, PLACES: no fewer than there are experts, and TOP_K. Masks: the last rows, lanes and places past them.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    lane = tl.arange(0, LANES)[None, :]
    inside = (row < rows)[:, None] & (lane < experts)
    scores = tl.load(logits + row.to(tl.int64)[:, None] * row_stride + lane, mask=inside, other=float("-inf"))
    total = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    if SIGMOID:
        gates = 1.0 / (1.0 + tl.exp(-scores))
    else:
        gates = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        total = tl.sum(tl.where(lane < experts, gates, 0.0), axis=1)
    left = lane < experts
    place = tl.arange(0, PLACES)[None, :]
    picked = tl.zeros((BLOCK_ROWS, PLACES), tl.int32)
    shares = tl.zeros((BLOCK_ROWS, PLACES), tl.float32)
    for rank in tl.static_range(TOP_K):
        best = tl.max(tl.where(left, scores, float("-inf")), axis=1)
        expert = tl.min(tl.where(left & (scores >= best[:, None]), lane, LANES), axis=1)
        expert = tl.minimum(expert, experts - 1)[:, None]
        gate = tl.sum(tl.where(lane == expert, gates, 0.0), axis=1) / total
        left = left & (lane != expert)
        picked = tl.where(place == rank, expert, picked)
        shares = tl.where(place == rank, gate[:, None], shares)
    if RENORMALIZE:
        shares = shares / tl.sum(shares, axis=1)[:, None]
    out = row.to(tl.int64)[:, None] * TOP_K + place
    inside = (row < rows)[:, None] & (place < TOP_K)
    tl.store(chosen + out, picked, mask=inside)
    tl.store(weights + out, shares, mask=inside)


@triton.jit
def experts_tiles(pair, expert, chosen, pairs, LANES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """chosen [pairs] -> pair [tiles, BLOCK_ROWS] and expert [tiles]: a program for each tile counts all pairs, and finds its own.

    LANES: no fewer than there are experts. Past the last tile in use, lanes are -1.
    """
    tile = tl.program_id(0)
    lane = tl.arange(0, LANES)
    counts = tl.zeros((LANES,), tl.int32)
    for start in range(0, pairs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        ids = tl.load(chosen + at, mask=at < pairs, other=-1)
        counts += tl.sum((ids[:, None] == lane[None, :]).to(tl.int32), axis=0)
    needed = (counts + BLOCK_ROWS - 1) // BLOCK_ROWS
    ends = tl.cumsum(needed, axis=0)
    own = tl.sum((ends <= tile).to(tl.int32), axis=0)
    count = tl.sum(tl.where(lane == own, counts, 0), axis=0)
    first = (tile - tl.sum(tl.where(lane == own, ends - needed, 0), axis=0)) * BLOCK_ROWS
    slot = tl.arange(0, BLOCK_ROWS)
    tl.store(expert + tile, own)
    tl.store(pair + tile * BLOCK_ROWS + slot, tl.full((BLOCK_ROWS,), -1, tl.int32), mask=first + slot >= count)
    seen = tl.zeros((), tl.int32)
    for start in range(0, pairs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = (tl.load(chosen + at, mask=at < pairs, other=-1) == own).to(tl.int32)
        place = seen + tl.cumsum(mine, axis=0) - 1 - first
        tl.store(pair + tile * BLOCK_ROWS + place, at, mask=(mine == 1) & (place >= 0) & (place < BLOCK_ROWS))
        seen += tl.sum(mine, axis=0)


@triton.jit
def experts_hidden(
    hidden, x, gate_up, pair, expert, mlp, embed, x_stride, TOP_K: tl.constexpr, KIND: tl.constexpr, WHOLE_STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):
    """x [tokens, embed], gate_up [experts, 2 * mlp, embed] -> hidden [pairs, mlp]. Tiles are turned as in linear_kernel.py."""
    tile = tl.program_id(0)
    pairs = tl.load(pair + tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))
    if tl.load(pair + tile * BLOCK_ROWS) >= 0:
        output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        lane = tl.arange(0, BLOCK_INPUTS)
        # Lanes without a pair repeat pair 0, outputs past the tail the last one: what they give is not stored.
        x_at = x + (tl.maximum(pairs, 0) // TOP_K).to(tl.int64)[None, :] * x_stride + lane[:, None]
        line = tl.load(expert + tile).to(tl.int64) * 2 * mlp + tl.minimum(output, mlp - 1)
        gate_at = gate_up + line[:, None] * embed + lane[None, :]
        up_at = gate_up + (line + mlp)[:, None] * embed + lane[None, :]
        gate = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.float32)
        up = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.float32)
        for start in range(0, embed, BLOCK_INPUTS):
            values, gates = load_step(x_at, gate_at, start, lane, embed, WHOLE_STEPS)
            gate = tl.dot(gates, values, gate, input_precision="ieee")
            if WHOLE_STEPS:
                ups = tl.load(up_at + start)
            else:
                ups = tl.load(up_at + start, mask=(lane < embed - start)[None, :], other=0.0)
            up = tl.dot(ups, values, up, input_precision="ieee")
        made = (formula(gate, KIND) * up).to(hidden.dtype.element_ty)
        inside = (output < mlp)[:, None] & (pairs >= 0)[None, :]
        tl.store(hidden + pairs.to(tl.int64)[None, :] * mlp + output[:, None], made, mask=inside)


@triton.jit
def experts_down(
    made, hidden, down, pair, expert, mlp, embed, WHOLE_STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):
    """hidden [pairs, mlp], down [experts, embed, mlp] -> made [pairs, embed]."""
    tile = tl.program_id(0)
    pairs = tl.load(pair + tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))
    if tl.load(pair + tile * BLOCK_ROWS) >= 0:
        output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        lane = tl.arange(0, BLOCK_INPUTS)
        hidden_at = hidden + tl.maximum(pairs, 0).to(tl.int64)[None, :] * mlp + lane[:, None]
        line = tl.load(expert + tile).to(tl.int64) * embed + tl.minimum(output, embed - 1)
        down_at = down + line[:, None] * mlp + lane[None, :]
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.float32)
        for start in range(0, mlp, BLOCK_INPUTS):
            values, weights = load_step(hidden_at, down_at, start, lane, mlp, WHOLE_STEPS)
            sums = tl.dot(weights, values, sums, input_precision="ieee")
        inside = (output < embed)[:, None] & (pairs >= 0)[None, :]
        tl.store(made + pairs.to(tl.int64)[None, :] * embed + output[:, None], sums.to(made.dtype.element_ty), mask=inside)


@triton.jit
def load_step(values_at, weights_at, start, lane, size, WHOLE_STEPS: tl.constexpr):
    """(values [step, rows], weights [outputs, step]) from `start` on; the mask is the tail of the inputs."""
    if WHOLE_STEPS:
        values, weights = tl.load(values_at + start), tl.load(weights_at + start)
    else:
        inside = lane < size - start
        values = tl.load(values_at + start, mask=inside[:, None], other=0.0)
        weights = tl.load(weights_at + start, mask=inside[None, :], other=0.0)
    return values, weights


@triton.jit
def experts_sum(out, made, weights, embed, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """made [tokens * TOP_K, embed], weights [tokens, TOP_K] float32 -> out [tokens, embed]."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for rank in range(TOP_K):
        one = tl.load(made + (token * TOP_K + rank) * embed + lane, mask=lane < embed, other=0.0)
        sums += one.to(tl.float32) * tl.load(weights + token * TOP_K + rank)
    tl.store(out + token * embed + lane, sums.to(out.dtype.element_ty), mask=lane < embed)
