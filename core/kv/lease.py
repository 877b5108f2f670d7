"""What one running sequence holds of each group, and the group's own arithmetic."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ops.state import StateGroup
from .blocks import BlockPool
from .prefix import Node
from .stats import Computed

NEVER = 2**62
EMPTY = np.empty(0, np.int32)
EMPTY.setflags(write=False)


class PagedGroup:
    """A paged group's pool, and its place in the index that serves its block size."""

    __slots__ = ("block_tokens", "column", "index", "name", "pool", "position", "window")

    def __init__(self, position: int, group: StateGroup, pool: BlockPool, index: int, column: int) -> None:
        self.position, self.name = position, group.name
        self.block_tokens, self.window = group.block_tokens, group.window
        self.pool, self.index, self.column = pool, index, column

    def first_needed(self, start: int) -> int:
        """The first block that a token at `start` still reads: it sees `window` positions, its own among them."""
        return 0 if self.window is None else max(0, start - self.window + 1) // self.block_tokens


class Lease:
    """What one running sequence holds.

    tables: per group [blocks] int32, read-only; a change makes new ones. room: positions that its blocks cover.
    due: up to this length a decode needs no change. commit_at: the length at which the next block is full.
    tips, depths: per index, the node of its last full block, and how many there are. computed: why it is not all a hit.
    """

    __slots__ = ("arrays", "commit_at", "computed", "depths", "due", "filled", "freed", "room", "tables", "tips")

    def __init__(self, groups: int) -> None:
        self.arrays: list[np.ndarray] = [EMPTY] * groups
        self.filled = [0] * groups
        self.freed = [0] * groups
        self.tables: tuple[np.ndarray, ...] = ()
        self.tips: list[Node | None] = []
        self.depths: list[int] = []
        self.room = self.due = 0
        self.commit_at = NEVER
        self.computed: tuple[Computed, ...] = ()

    def append(self, group: PagedGroup, blocks: Sequence[int]) -> None:
        g = group.position
        filled = self.filled[g]
        end = filled + len(blocks)
        old = self.arrays[g]
        if end > len(old):
            self.arrays[g] = np.zeros(max(end, 2 * len(old), 8), np.int32)
            self.arrays[g][:len(old)] = old
        if blocks:
            self.arrays[g][filled:end] = blocks
        self.filled[g] = end

    def held(self, group: PagedGroup) -> list[int]:
        """The group's blocks, the least useful first: the end of a prefix, but the beginning of what leads to a window."""
        g = group.position
        blocks: list[int] = self.arrays[g][self.freed[g]:self.filled[g]].tolist()
        return blocks[::-1] if group.window is None else blocks

    def slide(self, group: PagedGroup, start: int) -> list[int]:
        """Drop the blocks that a token at `start` no longer reads, and return them, first first."""
        g = group.position
        freed, first = self.freed[g], min(group.first_needed(start), self.filled[g])
        if first <= freed:
            return []
        array = self.arrays[g].copy()
        behind: list[int] = array[freed:first].tolist()
        array[freed:first] = 0
        self.arrays[g], self.freed[g] = array, first
        return behind

    def settle(self, groups: Sequence[PagedGroup]) -> None:
        """New read-only views of the tables, and how far they last."""
        tables = tuple([array[:filled] for array, filled in zip(self.arrays, self.filled, strict=True)])
        for table in tables:
            table.setflags(write=False)
        self.tables = tables
        self.room = self.due = NEVER
        for group in groups:
            g = group.position
            self.room = min(self.room, self.filled[g] * group.block_tokens)
            if group.window is not None:
                self.due = min(self.due, (self.freed[g] + 1) * group.block_tokens + group.window - 1)
        self.due = min(self.due, self.room)
