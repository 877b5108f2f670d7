"""The scheduler's figures."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerStats:
    """following: those of the waiting that wait for another's blocks. preemptions: since the start."""

    running: int
    waiting: int
    following: int
    preemptions: int
    plans: int
