"""The pool: which blocks of one group are free, cached or held. Every operation is O(1) per block."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from ...errors import CapacityError


class BlockPool:
    """Block ids 1 to count-1; block 0 is null and never handed out.

    free: holds nothing of use. cached: held by nobody, but in the prefix index; taken only when no block is free,
    least recently released first, after `evict(block)`. held: by one sequence or, if shared, by several.
    """

    def __init__(self, count: int, evict: Callable[[int], None]) -> None:
        if count < 2:
            raise CapacityError(f"a pool needs the null block and at least one more; found {count} blocks. Give it more memory.")
        self.count = count
        self._evict = evict
        self._holders = [0] * count
        self._indexed = [False] * count
        self._free = list(range(count - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that `take` can give: the free and the cached."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def idle(self, block: int) -> bool:
        """Nobody holds it, so that sharing it lowers `available`."""
        return self._holders[block] == 0

    def holders(self, block: int) -> int:
        return self._holders[block]

    def take(self, blocks: int) -> list[int]:
        """Fresh blocks, each with one holder. The caller has checked `available`."""
        assert blocks <= self.available, "blocks were taken without asking whether there are any"
        taken = []
        for _ in range(blocks):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._indexed[block] = False
                self._evict(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def share(self, block: int) -> None:
        """One more holder of an indexed block."""
        if self._holders[block] == 0:
            del self._cached[block]
        self._holders[block] += 1

    def index(self, block: int) -> None:
        """The prefix index knows this held block: keep it when its last holder lets go."""
        assert self._holders[block] > 0, "only a held block can enter the index"
        self._indexed[block] = True

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each. What is released first is evicted first."""
        for block in blocks:
            holders = self._holders[block] - 1
            assert holders >= 0, "a block was released more often than held"
            self._holders[block] = holders
            if holders == 0:
                if self._indexed[block]:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def forget(self, blocks: Iterable[int]) -> None:
        """The prefix index does not know these any more; those that nobody holds are free."""
        for block in blocks:
            self._indexed[block] = False
            if self._holders[block] == 0:
                del self._cached[block]
                self._free.append(block)
