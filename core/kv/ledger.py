"""The ledger: for each block that had to be computed, why."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from .chain import Chain
from .prefix import Node, PrefixIndex
from .stats import Computed, Eviction, Reason


def common_tokens(left: bytes, right: bytes) -> int:
    """How many leading int32 tokens two blocks share."""
    a, b = np.frombuffer(left, "<i4"), np.frombuffer(right, "<i4")
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if len(differ) else len(a)


def divergence(index: PrefixIndex, parent: Node | None, block: int, tokens: bytes) -> int | None:
    """The position at which `tokens`, block number `block`, leave what was seen after `parent`; None if nothing was."""
    if parent is None or not parent.recent:
        return None
    shared = max(common_tokens(tokens, other) for other in parent.recent)
    return block * index.block_tokens + shared if block or shared else None


def explain(index: PrefixIndex, chain: Chain, path: Sequence[Node], hit_tokens: int, tokens: np.ndarray) -> tuple[Computed, ...]:
    """Why each block after `hit_tokens` is computed.

    path: the root and the known nodes of the sequence. tokens [known] int32: what is known of it.
    """
    size = index.block_tokens
    first, full = hit_tokens // size, len(tokens) // size
    known = len(path) - 1
    left_at = None
    if first <= known < full:
        data = tokens[known * size:(known + 1) * size].tobytes()
        left_at = divergence(index, path[-1] if path else None, known, data)

    def reason(block: int) -> tuple[Reason, int | None, Eviction | None]:
        elsewhere = index.witness(chain.plain[block], chain.origins[0])
        eviction = index.eviction(chain.keys[0][block])
        if eviction is not None:
            return Reason.EVICTED, None, eviction
        if block < known:
            return (Reason.LOGITS if all(path[block + 1].blocks) else Reason.EVICTED), None, None
        if elsewhere:
            return Reason.SALT_DIFFERS, None, None
        return (Reason.NEVER_SEEN if left_at is None else Reason.DIVERGED), left_at, None

    reasons = [(block, *reason(block)) for block in range(first, full)]
    runs = []
    for (why, token), run in groupby(reasons, key=lambda item: item[1:3]):
        blocks = list(run)
        runs.append(Computed(why, blocks[0][0], len(blocks), token, blocks[0][3]))
    if len(tokens) % size:
        runs.append(Computed(Reason.PARTIAL, full, 1))
    return tuple(runs)
