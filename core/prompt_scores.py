"""Log-probabilities of a prompt's own tokens: further samples of a step, each of which can draw nothing but what stands there."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .edits import Edits
from .request import Request, SamplingParams
from .scheduler.plan import RowPlan, StepPlan

CERTAIN = 1e30
"""The bias of the token that stands there. Log-probabilities are those of the logits before it."""
NOBODY = Request("score", np.zeros(1, np.int32), SamplingParams(temperature=0.0), max_tokens=1)


class Score(NamedTuple):
    """The token at `position` of a prompt, judged by the logits of the step's token `place`, one before it."""

    request: Request
    position: int
    place: int

    @property
    def token(self) -> int:
        return int(self.request.prompt[self.position])


def scores(plan: StepPlan) -> Iterator[Score]:
    """In the order in which they stand behind the step's own samples."""
    if not plan.scored:
        return
    starts = np.cumsum([0, *(row.count for row in plan.rows)]).tolist()
    for index in plan.scored:
        row = plan.rows[index]
        for position in range(row.start + 1, min(row.length + 1, len(row.request.prompt))):
            yield Score(row.request, position, starts[index] + position - 1 - row.start)


def forced(row: RowPlan, token: int) -> tuple[RowPlan, Edits]:
    """A sample that draws this token, greedily, for nobody's slot."""
    edit = Edits(np.array([token]), np.zeros(1, bool), np.zeros(1, np.int64), np.full(1, CERTAIN))
    return row._replace(request=NOBODY, slot=0), edit


class PromptScores:
    """Of one prompt, [tokens]: token id -> Logprob as in `CompletionOutput.logprobs`; None for the first, which nothing precedes."""

    def __init__(self, tokens: int) -> None:
        self._entries: list[Any] = [None] * tokens
        self._told: tuple[Any, ...] | None = None

    def put(self, position: int, entry: Any) -> None:
        """Again, where a preempted sequence is computed again."""
        if self._told is None:
            self._entries[position] = entry

    @property
    def told(self) -> tuple[Any, ...]:
        """Asked once the prompt was computed."""
        self._told = self._told or tuple(self._entries)
        return self._told
