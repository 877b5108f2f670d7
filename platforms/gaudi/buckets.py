"""The shapes that a step is padded to: few, since each of them is a graph that takes the chip's compiler seconds to minutes."""
from __future__ import annotations

from dataclasses import dataclass, replace

from ...ops import BatchShape
from ..contract import Buckets


@dataclass(frozen=True)
class JointBuckets(Buckets):
    """Sizes that go together are padded together: in decode tokens, rows and samples; else rows and samples, and the longest query
    with the tokens. What is left is (rows + tokens * rows) * blocks, and not the product of all."""

    def pad(self, shape: BatchShape) -> BatchShape:
        one = super().pad(shape)
        if one.longest_query == 1:
            width = max(one.tokens, one.rows, one.samples)
            return replace(one, tokens=width, rows=width, samples=width)
        width = max(one.rows, one.samples) if one.samples <= self.rows[-1] else one.rows
        return replace(one, rows=width, samples=max(width, one.samples), longest_query=one.tokens)


ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
BUCKETS = JointBuckets(
    tokens=(*ROWS, 256, 512, 1024, 2048),
    rows=ROWS,
    samples=ROWS,
    blocks=(1, 4, 16, 64, 256, 1024),
)
MOST_GRAPHS = 512
"""Shapes of one step: what the buckets allow a busy server. More means that something is not padded."""
