"""Why blocks were computed: the account that makes a cache's misses explain themselves."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """Why a block of a prompt had to be computed."""

    NEVER_SEEN = "never seen"
    EVICTED = "evicted"
    DIVERGED = "diverged"
    SALT_DIFFERS = "salt differs"
    PARTIAL = "partial"          # not full, so no index can hold it
    LOGITS = "logits"            # known, but the last token's logits are needed


@dataclass(frozen=True)
class Eviction:
    """When and for whom a block was evicted. `number` is the plan's, `by` the request that took its place."""

    group: str
    number: int
    now: float
    by: str


@dataclass(frozen=True)
class Computed:
    """A run of `blocks` blocks from block `first` on, computed for one reason.

    token: where the sequence left what is known (diverged). eviction: of the first block of the run (evicted).
    """

    reason: Reason
    first: int
    blocks: int
    token: int | None = None
    eviction: Eviction | None = None


@dataclass(frozen=True)
class KVReport:
    """One sequence's account: tokens found, and the blocks computed with their reasons, over all its admissions."""

    hit_tokens: int = 0
    computed: tuple[Computed, ...] = ()

    def blocks(self, reason: Reason) -> int:
        return sum(run.blocks for run in self.computed if run.reason is reason)


@dataclass(frozen=True)
class KVStats:
    """The memory's totals. Per group, in the order of the groups: blocks free, cached and held, without the null block."""

    hit_tokens: int
    prompt_tokens: int
    computed_blocks: dict[Reason, int]
    evicted_blocks: int
    free_blocks: tuple[int, ...]
    cached_blocks: tuple[int, ...]
    held_blocks: tuple[int, ...]
