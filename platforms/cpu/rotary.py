"""Tables of cosines and sines, computed once for as many positions as were met."""
from __future__ import annotations

from typing import Any

import numpy as np

from .library import NATIVE

Array = np.ndarray[Any, Any]

MOST_POSITIONS = 1 << 17
"""Beyond, a table would cost more memory than computing the few rows that a step needs."""

MOST_TABLES = 8
"""More than a model has kinds of rope; a process that tries many keeps the last ones."""

_tables: dict[Any, Array] = {}


def rotary_table(spec: Any, positions: Array) -> tuple[Array, Array]:
    """(table [n, cosines | sines] float32, [tokens] row of the table for each token)."""
    highest = int(positions.max(initial=0))
    if highest >= MOST_POSITIONS:
        NATIVE.spoil_recording()
        return _rows(spec, positions), np.arange(len(positions), dtype=np.int32)
    table = _tables.get(spec)
    if table is None or len(table) <= highest:
        while len(_tables) >= MOST_TABLES:
            del _tables[next(iter(_tables))]
        table = _tables[spec] = _rows(spec, np.arange(1 << max(10, highest.bit_length())))
    return table, positions


def _rows(spec: Any, positions: Array) -> Array:
    angles = spec.angles(positions).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * np.float32(spec.scale)
