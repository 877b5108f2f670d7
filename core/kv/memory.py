"""KV memory: one pool per group of layers, and what each running sequence holds of them."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm
from typing import NamedTuple

import numpy as np

from ...ops.state import StateGroup
from .blocks import BlockPool
from .chain import Chain
from .events import KVListener
from .lease import NEVER, Lease, PagedGroup
from .ledger import explain
from .prefix import Digest, Node, PrefixIndex, sha256
from .salt import Salt
from .stats import Computed, Eviction, KVStats, Reason


class Hit:
    """What the index knows of a sequence: `tokens` can be taken over; paths[i] are the root and the nodes of index i."""

    __slots__ = ("paths", "tokens")

    def __init__(self, tokens: int, paths: list[list[Node]]) -> None:
        self.tokens = tokens
        self.paths = paths


class Stretch(NamedTuple):
    """Consecutive blocks of one group: `first` is the place of the first one in its sequence."""

    group: int
    block_tokens: int
    first: int
    blocks: tuple[int, ...]

    @property
    def positions(self) -> range:
        return range(self.first * self.block_tokens, (self.first + len(self.blocks)) * self.block_tokens)


class KVMemory:
    """Pools and prefix indexes. Holds no clock: `begin` says which plan the blocks are taken for."""

    def __init__(
        self, groups: Sequence[StateGroup], blocks: Sequence[int], *, sharing: bool = True, digest: Digest = sha256,
    ) -> None:
        self._group_count = len(groups)
        self._sharing = sharing and all(group.kind == "paged" for group in groups)
        self._paged: list[PagedGroup] = []
        self._number, self._now, self._taker = 0, 0.0, ""
        self._evicted = self._hit_tokens = self._prompt_tokens = 0
        self._computed = dict.fromkeys(Reason, 0)
        self.releases = 0
        self.listener: KVListener | None = None
        """Told of one group, the first that keeps whole prefixes."""
        self._owners: list[dict[int, Node]] = [{} for _ in groups]
        sizes: list[int] = []
        columns: list[int] = []
        for position, (group, count) in enumerate(zip(groups, blocks, strict=True)):
            if group.kind == "recurrent":
                continue
            if group.block_tokens not in sizes:
                sizes.append(group.block_tokens)
                columns.append(0)
            index = sizes.index(group.block_tokens)
            pool = BlockPool(count, partial(self._evict, len(self._paged)))
            self._paged.append(PagedGroup(position, group, pool, index, columns[index]))
            columns[index] += 1
        remembered = 2 * sum(blocks) + 1024
        self.indexes = [PrefixIndex(size, width, remembered, digest) for size, width in zip(sizes, columns, strict=True)]
        self._unit = lcm(*sizes)
        self._told = min(self._paged, key=lambda group: group.window is not None).position if self._paged else -1
        self._sharing = self._sharing and bool(self.indexes)

    @property
    def sharing(self) -> bool:
        """Whether prefixes are shared: not with recurrent groups, whose state stands in a slot and not in blocks."""
        return self._sharing

    @property
    def lead_tokens(self) -> int:
        """Tokens of a block of index 0, by whose keys a leader is found; 0 if prefixes are not shared."""
        return self.indexes[0].block_tokens if self._sharing else 0

    def begin(self, number: int, now: float) -> None:
        self._number, self._now = number, now

    def chain(self, salt: Salt) -> Chain:
        return Chain(self.indexes if self._sharing else (), salt)

    # What is known already

    def match(self, chain: Chain, tokens: np.ndarray) -> Hit:
        """The longest prefix of tokens [known] that every group can give; never the last token, whose logits are needed."""
        if not self._sharing:
            return Hit(0, [])
        limit = (len(tokens) - 1) // self._unit * self._unit
        paths = [self._path(number, chain, tokens) for number in range(len(self.indexes))]
        for index, path in zip(self.indexes, paths, strict=True):
            limit = min(limit, max(0, len(path) - 1) * index.block_tokens)
        while True:
            limit = limit // self._unit * self._unit
            shortest = min(self._reach(group, paths[group.index], limit) for group in self._paged)
            if shortest == limit:
                return Hit(limit, paths)
            limit = shortest

    def _path(self, number: int, chain: Chain, tokens: np.ndarray) -> list[Node]:
        index = self.indexes[number]
        node = index.find(None, chain.origins[number], chain.salt)
        path: list[Node] = []
        data, width = tokens.data.cast("B"), 4 * index.block_tokens
        for block, key in enumerate(chain.keys[number]):
            if node is None:
                return path
            path.append(node)
            node = index.find(node, key, bytes(data[block * width:(block + 1) * width]))
        return [*path, node] if node is not None else path

    def _reach(self, group: PagedGroup, path: list[Node], limit: int) -> int:
        """`limit`, if the group has every block that a token at `limit` reads; else a bound that leaves the gap out."""
        column, size = group.column, group.block_tokens
        needed = range(group.first_needed(limit), limit // size)
        if group.window is None:
            return next((block * size for block in needed if not path[block + 1].blocks[column]), limit)
        return next((block * size for block in reversed(needed) if not path[block + 1].blocks[column]), limit)

    # Taking and giving back

    def admit(self, hit: Hit, chain: Chain, tokens: np.ndarray, length: int, by: str, alone: bool) -> Lease | None:
        """Hold the hit, and blocks for all tokens [known] in full groups, up to `length` in those with a window.

        None: there are too few. `alone` takes as many as there are, since nobody is left to wait for.
        """
        takes = []
        for group in self._paged:
            size, pool = group.block_tokens, group.pool
            first, end = group.first_needed(hit.tokens), hit.tokens // size
            shared = [node.blocks[group.column] for node in hit.paths[group.index][1 + first:1 + end]] if hit.tokens else []
            available = pool.available - sum(map(pool.idle, shared))
            wanted = -(-(len(tokens) if group.window is None else length) // size) - end
            if wanted > available and not alone:
                return None
            takes.append((group, first, shared, min(wanted, available)))
        self._taker = by
        lease = Lease(self._group_count)
        lease.computed = self._account(hit, chain, tokens)
        for group, first, shared, _ in takes:
            for block in shared:
                group.pool.share(block)
            lease.freed[group.position] = lease.filled[group.position] = first
            lease.append(group, shared)
        self._root(lease, hit, chain)
        for group, _, _, wanted in takes:
            lease.append(group, group.pool.take(wanted))
        lease.settle(self._paged)
        return lease

    def _root(self, lease: Lease, hit: Hit, chain: Chain) -> None:
        """Pin where the sequence stands in each index, so that nothing above it is forgotten while it runs."""
        if not self._sharing:
            return
        for number, index in enumerate(self.indexes):
            depth = hit.tokens // index.block_tokens
            node = hit.paths[number][depth] if depth else index.ensure(None, chain.origins[number], chain.salt)
            if node is not None:
                index.pin(node)
            lease.tips.append(node)
            lease.depths.append(depth)
        self._aim(lease)

    def extend(self, lease: Lease, start: int, length: int, by: str) -> int:
        """Free what `start` no longer reads, and cover as many positions up to `length` as there are blocks for.

        Returns the length covered; if it is not past `start`, no block was taken.
        """
        for group in self._paged:
            behind = lease.slide(group, start)
            if behind:
                group.pool.release(behind)
                self.releases += 1
        if length > lease.room:
            limit = min((lease.filled[g.position] + g.pool.available) * g.block_tokens for g in self._paged)
            length = min(length, limit)
            if length <= start:
                lease.settle(self._paged)
                return length
            self._taker = by
            for group in self._paged:
                missing = -(-length // group.block_tokens) - lease.filled[group.position]
                if missing > 0:
                    lease.append(group, group.pool.take(missing))
        lease.settle(self._paged)
        return length

    def release(self, lease: Lease) -> None:
        """Give everything back."""
        for group in self._paged:
            group.pool.release(lease.held(group))
        for index, tip in zip(self.indexes, lease.tips, strict=False):
            if tip is not None:
                index.unpin(tip)
        lease.tips = []
        self.releases += 1

    # The index

    def commit(self, lease: Lease, chain: Chain, tokens: np.ndarray) -> None:
        """Make the full blocks of tokens [computed and known] findable, from the next plan on."""
        chain.extend(tokens)
        data = tokens.data.cast("B")
        for number, index in enumerate(self.indexes):
            width = 4 * index.block_tokens
            groups = [group for group in self._paged if group.index == number]
            tip = lease.tips[number]
            while tip is not None and (lease.depths[number] + 1) * index.block_tokens <= len(tokens):
                depth = lease.depths[number]
                node = index.ensure(tip, chain.keys[number][depth], bytes(data[depth * width:(depth + 1) * width]))
                if node is not None:
                    index.pin(node)
                    for group in groups:
                        placed = self._place(index, group, node, int(lease.arrays[group.position][depth]))
                        if placed and self.listener and group.position == self._told and not chain.salted:
                            parent = tip.key if depth else None
                            self.listener.stored(node.key, parent, node.tokens, index.block_tokens)
                index.unpin(tip)
                tip = lease.tips[number] = node
                lease.depths[number] = depth + 1
        self._aim(lease)

    def _place(self, index: PrefixIndex, group: PagedGroup, node: Node, block: int) -> bool:
        """Whether the block became the group's for these tokens."""
        new = bool(block) and not node.blocks[group.column]
        if new:
            index.place(node, group.column, block)
            group.pool.index(block)
            self._owners[group.position][block] = node
        return new

    def _aim(self, lease: Lease) -> None:
        lease.commit_at = min(
            ((depth + 1) * index.block_tokens for index, tip, depth in zip(self.indexes, lease.tips, lease.depths, strict=True)
             if tip is not None), default=NEVER)

    def _evict(self, place: int, block: int) -> None:
        group = self._paged[place]
        node = self._owners[group.position].pop(block)
        self._evicted += 1
        if self.listener and group.position == self._told:
            self.listener.removed(node.key)
        self.indexes[group.index].evict(node, group.column, Eviction(group.name, self._number, self._now, self._taker))

    def forget(self) -> None:
        """Empty the index: what the blocks hold cannot be trusted. Nobody holds any."""
        for group in self._paged:
            owners = self._owners[group.position]
            for node in owners.values():
                self.indexes[group.index].displace(node, group.column)
            group.pool.forget(list(owners))
            owners.clear()
        self.releases += 1
        if self.listener:
            self.listener.cleared()

    # From and to elsewhere

    def stored(self, chain: Chain, tokens: np.ndarray) -> list[Stretch]:
        """For each group of the longest known prefix of tokens [n], the blocks that a token after it would read."""
        hit = self.match(chain, np.append(tokens, np.int32(0)).astype(np.int32))
        stretches = []
        for group in self._paged:
            first, end = group.first_needed(hit.tokens), hit.tokens // group.block_tokens
            path = hit.paths[group.index] if hit.paths else []
            blocks = tuple(node.blocks[group.column] for node in path[1 + first:1 + end])
            stretches.append(Stretch(group.position, group.block_tokens, first, blocks))
        return stretches

    def adopt(self, chain: Chain, tokens: np.ndarray, write: Callable[[list[Stretch]], None]) -> bool:
        """Take blocks for tokens [n], let `write` fill them, and make them findable. False: there are too few."""
        counts = [len(tokens) // group.block_tokens for group in self._paged]
        starts = [group.first_needed(count * group.block_tokens) for group, count in zip(self._paged, counts, strict=True)]
        needs = [count - start for count, start in zip(counts, starts, strict=True)]
        if any(need > group.pool.available for group, need in zip(self._paged, needs, strict=True)):
            return False
        self._taker = "import"
        lease = Lease(self._group_count)
        for group, start, need in zip(self._paged, starts, needs, strict=True):
            lease.freed[group.position] = lease.filled[group.position] = start
            lease.append(group, group.pool.take(need))
        self._root(lease, Hit(0, []), chain)
        lease.settle(self._paged)
        try:
            write([Stretch(group.position, group.block_tokens, start, tuple(lease.arrays[group.position][start:start + need].tolist()))
                   for group, start, need in zip(self._paged, starts, needs, strict=True)])
            self.commit(lease, chain, tokens)
        finally:
            self.release(lease)
        return True

    # The account

    def _account(self, hit: Hit, chain: Chain, tokens: np.ndarray) -> tuple[Computed, ...]:
        """Why each block after the hit is computed; asked before taking blocks changes the answer."""
        self._hit_tokens += hit.tokens
        self._prompt_tokens += len(tokens)
        if not self._sharing:
            return ()
        runs = explain(self.indexes[0], chain, hit.paths[0], hit.tokens, tokens)
        for run in runs:
            self._computed[run.reason] += run.blocks
        return runs

    def stats(self) -> KVStats:
        pools = [group.pool for group in self._paged]
        return KVStats(
            hit_tokens=self._hit_tokens,
            prompt_tokens=self._prompt_tokens,
            computed_blocks=dict(self._computed),
            evicted_blocks=self._evicted,
            free_blocks=tuple(pool.available - pool.cached for pool in pools),
            cached_blocks=tuple(pool.cached for pool in pools),
            held_blocks=tuple(pool.count - 1 - pool.available for pool in pools),
        )
