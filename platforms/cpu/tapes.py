"""Steps that only decode, as tapes: the native calls of a shape's first step, replayed for those that follow."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ...ops import BatchShape, Packed, unpack
from ...ops.sample import Sampled
from ..contract import Step
from .library import NATIVE

MOST_ROWS = 64
"""Of a step that is recorded: with more, Python's share is small, and results would keep much memory."""
MOST_TAPES = 64
"""Kept, each some tens of kilobytes; the one that was not needed for longest goes first."""


class Recorded(NamedTuple):
    """A step that takes its batch packed."""

    run: Callable[[Any, Any, Packed], Sampled]


class _Tape(NamedTuple):
    """One recorded step, with what it reads its numbers from and writes them to."""

    weights: Any
    state: Any
    packed: Packed
    handle: Any
    made: Sampled


class Tapes:
    """All tapes of a platform: they run one after the other, so results of one may lie where those of another lay."""

    def __init__(self) -> None:
        self._pages = NATIVE.tape_pages() if NATIVE is not None else None
        self._tapes: dict[tuple[Step, BatchShape], _Tape] = {}

    def recorded(self, step: Step, shape: BatchShape) -> Recorded | None:
        """None: this shape is not worth a tape, or what a step does depends on its numbers."""
        if shape.longest_query > 1 or shape.rows > MOST_ROWS or shape.edits or shape.mask_words:
            return None
        return Recorded(partial(self._run, step))

    def clear(self) -> None:
        self._tapes.clear()

    def _run(self, step: Step, weights: Any, state: Any, packed: Packed) -> Sampled:
        """The step, replayed where its shape was recorded. The answer is the caller's own."""
        tape = self._tapes.pop(key := (step, packed.shape), None)
        if tape is None or tape.weights is not weights or tape.state is not state or not _replayed(tape, packed):
            tape = self._record(step, weights, state, packed)
        self._tapes[key] = tape
        if len(self._tapes) > MOST_TAPES:
            del self._tapes[next(iter(self._tapes))]
        return Sampled(*(None if array is None else array.copy() for array in tape.made))

    def _record(self, step: Step, weights: Any, state: Any, packed: Packed) -> _Tape:
        own = packed._replace(integers=packed.integers.copy(), floats=packed.floats.copy())
        handle = NATIVE.record(self._pages)
        try:
            made = step(weights, state, *unpack(*own))
        finally:
            NATIVE.stop_recording()
        return _Tape(weights, state, own, handle, made)


def _replayed(tape: _Tape, packed: Packed) -> bool:
    """False: a check failed before anything was drawn, as where positions outgrew a rotary table. The step may run anew."""
    tape.packed.integers[:], tape.packed.floats[:] = packed.integers, packed.floats
    try:
        NATIVE.replay(tape.handle)
    except ValueError:
        return False
    return True
