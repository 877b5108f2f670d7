"""Logits that a request changes before it draws: penalties, biases, and end tokens that come too early."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from .request import Key
from .scheduler.plan import RowPlan


class Edit(NamedTuple):
    """One (sample, token) pair; see `ops.Sampling`."""

    sample: int
    token: int
    seen: bool
    drawn: int
    bias: float


def edits(sample: int, row: RowPlan, drawn: Callable[[Key], Sequence[int]]) -> Iterator[Edit]:
    """The edits of one sample, one per token."""
    request = row.request
    params = request.params
    bias = dict(params.logit_bias or ())
    if row.position - len(request.prompt) < params.min_tokens:
        bias.update(dict.fromkeys(request.stop_ids, -inf))
    seen: set[int] = set()
    counts: Counter[int] = Counter()
    if params.needs_host:
        counts.update(drawn(request.key))
        seen = set(counts).union(request.prompt.tolist())
    for token in sorted(seen.union(bias)):
        yield Edit(sample, token, token in seen, counts[token], bias.get(token, 0.0))
