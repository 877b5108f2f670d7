"""Logits that a request changes before it draws: penalties, biases, end tokens that come too early, and what its grammar forbids."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np

from .request import Key
from .scheduler.plan import RowPlan

Array = np.ndarray[Any, Any]


LEAST_WANTED = -1e9
"""The bias of a forbidden token where a grammar may leave no other."""


class Edits(NamedTuple):
    """The edits of one sample, [tokens] each and one per token, ascending; see `ops.Sampling`."""

    tokens: Array
    seen: Array
    drawn: Array
    bias: Array


def edits(row: RowPlan, drawn: Callable[[Key], Sequence[int]]) -> Edits | None:
    """What the request of a row changes; None: nothing."""
    request = row.request
    params = request.params
    bias = dict(params.logit_bias or ())
    if row.position - len(request.prompt) < params.min_tokens:
        bias.update(dict.fromkeys(request.stop_ids, -inf))
    if request.guide is not None:
        bias = {token: max(value, LEAST_WANTED) for token, value in bias.items()}
    if not (bias or params.penalized):
        return None
    history = [request.prompt, np.asarray(drawn(request.key), np.int64)] if params.penalized else []
    tokens, place = np.unique(np.concatenate([*history, np.array(list(bias), np.int64)]), return_inverse=True)
    told = sum(map(len, history))
    made = Edits(tokens, np.zeros(len(tokens), bool), np.zeros(len(tokens), np.int64), np.zeros(len(tokens)))
    made.seen[place[:told]] = True
    made.bias[place[told:]] = list(bias.values())
    if history:
        np.add.at(made.drawn, place[len(request.prompt) : told], 1)
    return made


def mask(row: RowPlan, drawn: Callable[[Key], Sequence[int]]) -> Array | None:
    """[words] int32, as in `ops.Sampling`: what the grammar of a row's request allows; None: it has none."""
    guide = row.request.guide
    return None if guide is None else guide.mask(drawn(row.request.key))
