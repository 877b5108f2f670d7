"""Problems in the only shapes that a platform takes: padded as serving pads a step, and their results cut back."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..ops import BatchShape, Packed, empty, unpack
from ..platforms.contract import Buckets
from .problem import Array, Given, Problem


def padded_problem(problem: Problem, buckets: Buckets) -> Problem:
    """Its batch, and its arrays with a row for each token (of `sample`: for each sample), with zeros behind them."""
    if problem.packed is None or not {Given.BATCH, Given.SAMPLING} & {one for one in problem.arguments if isinstance(one, Given)}:
        return problem
    packed = padded(problem.packed, buckets)
    count, more = (_rows(problem, shape) for shape in (problem.packed.shape, packed.shape))

    def filled(argument: object) -> object:
        if not isinstance(argument, np.ndarray) or argument.shape[:1] != (count,):
            return argument
        return np.concatenate((argument, np.zeros((more - count, *argument.shape[1:]), argument.dtype)))

    return replace(problem, arguments=tuple(map(filled, problem.arguments)), packed=packed)


def cut(problem: Problem, results: Sequence[Array], buckets: Buckets) -> list[Array]:
    """The rows of the results that `problem`, as it was before padding, asked for."""
    if problem.packed is None:
        return list(results)
    count, more = (_rows(problem, shape) for shape in (problem.packed.shape, buckets.pad(problem.packed.shape)))
    return [part[:count] if part.shape[:1] == (more,) else part for part in results]


def _rows(problem: Problem, shape: BatchShape) -> int:
    return shape.samples if problem.spec.op == "sample" else shape.tokens


def padded(packed: Packed, buckets: Buckets) -> Packed:
    """Padding rows are empty; padding tokens belong to a padding row where there is one, and write to block 0."""
    shape = packed.shape
    made, batch, sampling = empty(buckets.pad(shape))
    old, drawn = unpack(*packed)
    for name in ("tokens", "source", "positions", "row", "starts", "lengths", "slot", "fresh", "adapter", "sample", "sample_slot"):
        _fill(getattr(batch, name), getattr(old, name))
    batch.starts[shape.rows + 1 :] = old.starts[-1]
    batch.row[shape.tokens :] = min(shape.rows, batch.shape.rows - 1)
    batch.source[shape.tokens :] = -1
    for group, had in zip(batch.groups, old.groups, strict=True):
        _fill(group.table, had.table)
        _fill(group.slots, had.slots)
    for field, had in zip(sampling, drawn, strict=True):
        _fill(field, had)
    return made


def _fill(whole: Array, part: Array) -> None:
    whole[tuple(slice(size) for size in part.shape)] = part
