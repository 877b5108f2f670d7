"""Steps that only decode, as tapes: the native calls of a shape's first step, replayed for those that follow."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ops import BatchShape, Packed, unpack
from ..contract import Step
from .library import NATIVE

MOST_TAPES = 64
"""Kept, each a few kilobytes and its arrays; the one that was not needed for longest goes first."""


def recordable(shape: BatchShape) -> bool:
    """Whether a step of this shape calls the same kernels whatever the batch says, often enough to be worth a tape."""
    return shape.longest_query == 1 and not shape.edits and not shape.mask_words


@dataclass
class _Tape:
    """One recorded step, and everything that it reads its numbers from and writes them to."""

    weights: Any
    state: Any
    packed: Packed
    handle: Any
    made: Any


class Tapes:
    """All tapes of a platform: they run one after the other, so results of one may lie where those of another lay."""

    def __init__(self) -> None:
        self._pages = NATIVE.tape_pages()
        self._tapes: dict[tuple[Step, BatchShape], _Tape] = {}

    def run(self, step: Step, weights: Any, state: Any, packed: Packed) -> Any:
        """The step, replayed where this shape was recorded. What it returns is the caller's own."""
        key = step, packed.shape
        tape = self._tapes.pop(key, None)
        if tape is None or tape.weights is not weights or tape.state is not state or not _replayed(tape, packed):
            tape = self._record(step, weights, state, packed)
        self._tapes[key] = tape
        if len(self._tapes) > MOST_TAPES:
            del self._tapes[next(iter(self._tapes))]
        return type(tape.made)(*(None if array is None else array.copy() for array in tape.made))

    def _record(self, step: Step, weights: Any, state: Any, packed: Packed) -> _Tape:
        own = packed._replace(integers=packed.integers.copy(), floats=packed.floats.copy())
        handle = NATIVE.record(self._pages)
        try:
            made = step(weights, state, *unpack(*own))
        finally:
            NATIVE.stop_recording()
        return _Tape(weights, state, own, handle, made)


def _replayed(tape: _Tape, packed: Packed) -> bool:
    """False: a check failed before anything was drawn, as when positions outgrew a rotary table. The step may run anew."""
    tape.packed.integers[:], tape.packed.floats[:] = packed.integers, packed.floats
    try:
        NATIVE.replay(tape.handle)
    except ValueError:
        return False
    return True
