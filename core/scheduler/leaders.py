"""Leaders: of sequences with the same new prefix one computes it, and the others wait for its blocks."""
from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many

from .sequence import Sequence


class Leaders:
    """Who computes which block, by its prefix key. Followers hold nothing, so that nobody waits in a circle."""

    def __init__(self) -> None:
        self._leader: dict[bytes, Sequence] = {}
        self._claims: dict[Sequence, deque[tuple[int, bytes]]] = {}
        self._followers: dict[bytes, list[Sequence]] = {}

    def lead(self, sequence: Sequence, keys: Many[bytes], first: int) -> None:
        """It computes its blocks from `first` on, unless another does."""
        claims: deque[tuple[int, bytes]] = deque()
        for block in range(first, len(keys)):
            if self._leader.setdefault(keys[block], sequence) is sequence:
                claims.append((block, keys[block]))
        if claims:
            self._claims[sequence] = claims

    def awaited(self, keys: Many[bytes], first: int, end: int) -> bytes | None:
        """The key of the last block from `first` to `end` that somebody is computing."""
        if not self._leader:
            return None
        return next((keys[block] for block in range(end - 1, first - 1, -1) if keys[block] in self._leader), None)

    def follow(self, sequence: Sequence, key: bytes) -> None:
        """It waits until the block is computed, or its leader gives up."""
        self._followers.setdefault(key, []).append(sequence)

    def advance(self, sequence: Sequence, blocks: int) -> list[Sequence]:
        """Its first `blocks` blocks can be found now. Returns who waits for none of them any more."""
        claims = self._claims.get(sequence)
        woken: list[Sequence] = []
        while claims and claims[0][0] < blocks:
            _, key = claims.popleft()
            self._leader.pop(key, None)
            woken += self._followers.pop(key, ())
        if claims is not None and not claims:
            del self._claims[sequence]
        return [follower for follower in woken if not follower.ended]

    def resign(self, sequence: Sequence) -> list[Sequence]:
        """It computes nothing any more. Returns those who waited for it."""
        return self.advance(sequence, 2**62)
