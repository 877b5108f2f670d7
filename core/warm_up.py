"""Before the first request: the steps that are likely to come, compiled one after the other, each told with its time."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from ..ops import BatchShape, StateGroup
from ..platforms.contract import Buckets
from .kv.layout import Shape
from .loader import Progress
from .runner import Runner

MOST = 24
"""Shapes that are compiled at most. What comes besides is compiled when it comes."""

log = logging.getLogger(__name__)


def warm_up(runner: Runner, limits: Shape, progress: Progress | None = None, most: int = MOST) -> dict[BatchShape, float]:
    """The seconds that each likely shape took. Nothing where the platform's steps are compiled for no shape."""
    buckets = runner.platform.capabilities.buckets
    shapes = list(dict.fromkeys(likely(buckets, runner.loaded.model.states, limits)))[:most] if buckets else []
    seconds = {}
    for done, shape in enumerate(shapes):
        what = f"compiling {described(shape)}"
        if progress:
            progress(what, 0, 1)
        started = time.perf_counter()
        runner.warm(shape)
        seconds[shape] = time.perf_counter() - started
        log.info("%s: %.1f s (%d of %d)", what, seconds[shape], done + 1, len(shapes))
        if progress:
            progress(what, 1, 1)
    return seconds


def likely(buckets: Buckets, groups: Sequence[StateGroup], limits: Shape) -> Iterator[BatchShape]:
    """Prompts of each size alone, then decoding of each number of rows, contexts that are short first."""
    def shape(tokens: int, rows: int, context: int, longest: int) -> BatchShape:
        widths = tuple(-(-context // group.block_tokens) for group in groups)
        return buckets.pad(BatchShape(tokens, rows, rows, widths, longest))

    for tokens in _up_to(buckets.tokens, limits.step_tokens):
        yield shape(tokens, 1, min(tokens, limits.length_tokens), tokens)
    widest = min(group.block_tokens for group in groups)
    for blocks in _up_to(buckets.blocks, -(-limits.length_tokens // widest)):
        for rows in _up_to(buckets.rows, limits.sequences):
            yield shape(rows, rows, min(blocks * widest, limits.length_tokens), 1)


def _up_to(sizes: Sequence[int], most: int) -> list[int]:
    """The sizes that are reached on the way to `most`, and `most`."""
    return [*(size for size in sizes if size < most), most]


def described(shape: BatchShape) -> str:
    work = f"decoding of {shape.rows} rows" if shape.longest_query == 1 else f"prefill of {shape.tokens} tokens"
    return f"{work}, {' and '.join(map(str, shape.blocks))} blocks of context"
