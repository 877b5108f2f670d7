"""Logits of a whole text, outside any engine: for verification and perplexity."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ops import StateGroup
from .loader import Loaded
from .request import Request, SamplingParams
from .runner import pack
from .scheduler.plan import RowPlan


def logits(loaded: Loaded, tokens: Sequence[int], *, chunk_tokens: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[tokens, vocab] float32: what the model says after each token of one sequence.

    chunk_tokens: so many tokens per step (None: all at once).
    """
    platform, groups = loaded.platform, loaded.states
    tables = tuple(_table(group, len(tokens)) for group in groups)
    state = platform.allocate(groups, [len(table) + 1 for table in tables], slots=1)
    request = Request("score", np.asarray(tokens), SamplingParams(temperature=0.0), max_tokens=1)
    parts = []
    step = chunk_tokens or len(tokens)
    for start in range(0, len(tokens), step):
        piece = request.prompt[start : start + step]
        row = RowPlan(request, 1, start, len(piece), piece, False, False, tables, start == 0)
        packed = pack([row], groups, platform.capabilities.buckets, sample=range(len(piece)))
        compiled = platform.compile(loaded.graph.score, packed.shape)
        parts.append(platform.submit(compiled, loaded.weights, state, packed).result()[: len(piece)])
    return np.concatenate(parts)


def _table(group: StateGroup, tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(1, 1 + -(-tokens // group.block_tokens), dtype=np.int32)
