"""Device code of sampling: edits, the limits of top-k and top-p, the Gumbel maximum, the best tokens. Nothing is sorted.

Scores become integers that ascend with them (`_key`). What top-k and top-p keep is a prefix of the descending order, ties
by ascending id, so it is told by two numbers: the lowest key kept, and the last id kept of that key.

    ids     0 1 2 3 4 5 6 7        kept: key > limit, or key == limit and id <= last
    keys    9 5 7 5 2 7 5 1        top-k 4: limit 5, last 1
            +   +     +            greater than the limit
              +                    of the ties the lowest id
"""
from __future__ import annotations

import triton
import triton.language as tl

from .threefry_kernel import uniforms


@triton.jit
def edit(
    changed, rows, tokens, seen, counts, biases, repetition, presence, frequency, edits, vocab, BLOCK: tl.constexpr,
):
    """Penalties and biases, in place: float64 arithmetic, rounded once. Padding names no edit, and changes nothing."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < edits
    row = tl.load(rows + lane, mask=inside, other=0).to(tl.int64)
    place = changed + row * vocab + tl.load(tokens + lane, mask=inside, other=0)
    used = tl.load(seen + lane, mask=inside, other=0) > 0
    count = tl.load(counts + lane, mask=inside, other=0)
    bias = tl.load(biases + lane, mask=inside, other=0.0)
    real = inside & (used | (count > 0) | (bias != 0))
    old = tl.load(place, mask=real, other=0.0).to(tl.float64)
    factor = tl.where(used, tl.load(repetition + row, mask=real, other=1.0), 1.0).to(tl.float64)
    penalty = tl.load(frequency + row, mask=real, other=0.0).to(tl.float64) * count.to(tl.float64)
    penalty += tl.where(count > 0, tl.load(presence + row, mask=real, other=0.0), 0.0).to(tl.float64)
    made = tl.where(old > 0, old / factor, old * factor) - penalty + bias.to(tl.float64)
    tl.store(place, made.to(tl.float32), mask=real)


@triton.jit
def forbid(logits, mask, vocab, words, BLOCK: tl.constexpr):
    """-inf, in place, for each token whose bit in mask [samples, words] is 0."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(mask + row * words + (ids >> 5), mask=ids < vocab, other=-1)
    tl.store(logits + row * vocab + ids, float("-inf"), mask=(ids < vocab) & (((word >> (ids & 31)) & 1) == 0))


@triton.jit
def limit(
    keys, lasts, peaks, logits, temperature, top_k, top_p, min_p, vocab, row_stride, BLOCK: tl.constexpr, DIGIT: tl.constexpr,
):
    """For each row the lowest key that top-k and top-p keep, the last id kept of that key, and the highest score.

    One program a row. Rows that keep everything, and greedy ones, are done at once.
    """
    row = tl.program_id(0)
    warmth, k, p = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    start = logits + row.to(tl.int64) * row_stride
    lowest, last, peak = tl.full((), 0, tl.uint32), tl.full((), 0, tl.int32) + vocab, tl.full((), 0.0, tl.float32)
    limited = (k > 0) & (k < vocab)
    if (warmth > 0) & (limited | (p < 1) | (tl.load(min_p + row) > 0)):
        peak = _peak(start, warmth, vocab, BLOCK)
        mass = tl.full((), 0.0, tl.float32)
        if limited:
            lowest = _search(start, warmth, peak, k.to(tl.float32), vocab, False, BLOCK, DIGIT)
            greater, above, each = _above(start, warmth, peak, lowest, vocab, BLOCK)
            ties = k - greater
            mass = above + ties.to(tl.float32) * each
            last = _tie(start, warmth, lowest, ties, vocab, BLOCK)
        elif p < 1:
            greater, mass, each = _above(start, warmth, peak, lowest, vocab, BLOCK)
        if p < 1:
            goal = p * mass
            found = _search(start, warmth, peak, goal, vocab, True, BLOCK, DIGIT)
            if found >= lowest:
                greater, above, each = _above(start, warmth, peak, found, vocab, BLOCK)
                share = tl.ceil((goal - above) / tl.maximum(each, 1e-30))
                ties = tl.minimum(tl.maximum(share, 1.0), 2147483520.0).to(tl.int32)
                tie = _tie(start, warmth, found, ties, vocab, BLOCK)
                last = tl.where(found > lowest, tie, tl.minimum(tie, last))
                lowest = found
    tl.store(keys + row, lowest.to(tl.int32, bitcast=True))
    tl.store(lasts + row, last)
    tl.store(peaks + row, peak)


@triton.jit
def draw(
    best_scores, best_ids, logits, keys, lasts, peaks, temperature, min_p, seed_low, seed_high, index, position, vocab, row_stride, parts,
    BLOCK: tl.constexpr,
):
    """The best of each part of the vocabulary: the highest logit, or of the kept tokens the highest score plus Gumbel noise."""
    row, part = tl.program_id(0), tl.program_id(1)
    first = part * BLOCK
    ids = first + tl.arange(0, BLOCK)
    logit = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=ids < vocab, other=float("-inf"))
    warmth = tl.load(temperature + row)
    if warmth > 0:
        score = _score(logit, warmth)
        key, lowest = _key(score), tl.load(keys + row).to(tl.uint32, bitcast=True)
        kept = (key > lowest) | ((key == lowest) & (ids <= tl.load(lasts + row)))
        kept = kept & (tl.exp(score - tl.load(peaks + row)) >= tl.load(min_p + row))
        even = uniforms(tl.load(seed_low + row), tl.load(seed_high + row), tl.load(index + row), tl.load(position + row), first, BLOCK)
        logit = tl.where(kept & (ids < vocab), score - tl.log(-tl.log(even)), float("-inf"))
    best, at = _best(logit, ids)
    tl.store(best_scores + row * parts + part, best)
    tl.store(best_ids + row * parts + part, at)


@triton.jit
def choose(tokens, last_token, best_scores, best_ids, slots, parts, PARTS: tl.constexpr):
    """The best of all parts, which is also kept in the sample's slot."""
    row = tl.program_id(0)
    lane = tl.arange(0, PARTS)
    inside = lane < parts
    scores = tl.load(best_scores + row * parts + lane, mask=inside, other=float("-inf"))
    _, token = _best(scores, tl.load(best_ids + row * parts + lane, mask=inside, other=0x7FFFFFFF))
    tl.store(tokens + row, token)
    tl.store(last_token + tl.load(slots + row), token)


@triton.jit
def rank(best_ids, logits, vocab, row_stride, count, BLOCK: tl.constexpr):
    """The `count` best ids of each row in order: each time the best of what comes after the one before."""
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * row_stride
    bound, at = tl.full((), float("inf"), tl.float32), tl.full((), -1, tl.int32)
    for place in range(count):
        best, found = tl.full((), float("-inf"), tl.float32), tl.full((), 0x7FFFFFFF, tl.int32)
        for first in range(0, vocab, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            logit = tl.load(start + ids, mask=ids < vocab, other=float("-inf"))
            after = (ids < vocab) & ((logit < bound) | ((logit == bound) & (ids > at)))
            here, id_here = _best(tl.where(after, logit, float("-inf")), tl.where(after, ids, 0x7FFFFFFF))
            better = (here > best) | ((here == best) & (id_here < found))
            best, found = tl.where(better, here, best), tl.where(better, id_here, found)
        tl.store(best_ids + row * count + place, found)
        bound, at = best, found


@triton.jit
def normal(peaks, sums, logits, vocab, row_stride, BLOCK: tl.constexpr):
    """Of each row the highest logit, and the logarithm of the sum of exp(logit - highest); lanes are summed apart, then together."""
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * row_stride
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(start + ids, mask=ids < vocab, other=float("-inf")))
    peak = tl.max(highest, axis=0)
    summed = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        summed += tl.exp(tl.load(start + ids, mask=ids < vocab, other=float("-inf")) - peak)
    tl.store(peaks + row, peak)
    tl.store(sums + row, tl.log(tl.sum(summed, axis=0)))


@triton.jit
def _best(scores, ids):
    """(the highest score, the lowest id that has it)."""
    best = tl.max(scores, axis=0)
    return best, tl.min(tl.where(scores == best, ids, 0x7FFFFFFF), axis=0)


@triton.jit
def _score(logit, warmth):
    """The logit over the temperature; one zero, so that equal scores have equal keys."""
    score = tl.div_rn(logit, tl.zeros_like(logit) + warmth)
    return tl.where(score == 0, 0.0, score)


@triton.jit
def _key(score):
    """float32 -> uint32 in the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _peak(start, warmth, vocab, BLOCK: tl.constexpr):
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(start + ids, mask=ids < vocab, other=float("-inf")))
    return tl.max(_score(highest, warmth), axis=0)


@triton.jit
def _search(start, warmth, peak, goal, vocab, MASS: tl.constexpr, BLOCK: tl.constexpr, DIGIT: tl.constexpr):
    """The highest key for which the tokens at or above it are `goal` in number, or in MASS: exp(score - peak).

    From the first bits to the last, DIGIT at a time: candidates are the keys found so far plus 0, 1, 2, ... in that digit.
    """
    found = tl.zeros((1,), tl.uint32)
    candidate = tl.arange(0, 1 << DIGIT).to(tl.uint32)[None, :]
    for turn in range((32 + DIGIT - 1) // DIGIT):
        shift = (tl.maximum(32 - DIGIT * (turn + 1), 0) + tl.zeros((1,), tl.int32)).to(tl.uint32)
        bounds = found + (candidate << shift)
        reached = tl.zeros((1 << DIGIT,), tl.float32)
        for first in range(0, vocab, BLOCK):
            ids = (first + tl.arange(0, BLOCK))[:, None]
            score = _score(tl.load(start + ids, mask=ids < vocab, other=float("-inf")), warmth)
            weight = tl.exp(score - peak) if MASS else tl.where(ids < vocab, 1.0, 0.0)
            reached += tl.sum(tl.where(_key(score) >= bounds, weight, 0.0), axis=0)
        enough = (reached[None, :] >= goal) & (bounds >= found)
        found = tl.max(tl.where(enough, bounds, found), axis=1)
    return tl.max(found, axis=0)


@triton.jit
def _above(start, warmth, peak, key, vocab, BLOCK: tl.constexpr):
    """(how many tokens lie above a key, their mass, the mass of one token that has it)."""
    count, mass, each = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        score = _score(tl.load(start + ids, mask=ids < vocab, other=float("-inf")), warmth)
        weight, above = tl.exp(score - peak), (_key(score) > key) & (ids < vocab)
        count += above.to(tl.int32)
        mass += tl.where(above, weight, 0.0)
        each = tl.maximum(each, tl.where(_key(score) == key, weight, 0.0))
    return tl.sum(count, axis=0), tl.sum(mass, axis=0), tl.max(each, axis=0)


@triton.jit
def _tie(start, warmth, key, ties, vocab, BLOCK: tl.constexpr):
    """The id of the token that is number `ties` of those with this key."""
    before, last = tl.full((), 0, tl.int32), tl.full((), -1, tl.int32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        score = _score(tl.load(start + ids, mask=ids < vocab, other=float("-inf")), warmth)
        same = ((_key(score) == key) & (ids < vocab)).to(tl.int32)
        place = before + tl.cumsum(same, axis=0)
        last = tl.maximum(last, tl.max(tl.where((same > 0) & (place <= ties), ids, -1), axis=0))
        before += tl.sum(same, axis=0)
    return last
