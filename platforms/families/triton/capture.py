"""Steps as CUDA graphs (HIP graphs under torch's ROCm builds, by the same names): recorded once, then replayed in one call."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Compiled = Callable[[Any, Any, Any, Any], Any]
"""(weights, state, integers, floats) -> what the step returns."""


@dataclass
class _Recorded:
    """One graph, and everything whose addresses it holds."""

    weights: Any
    state: Any
    integers: torch.Tensor
    floats: torch.Tensor
    graph: torch.cuda.CUDAGraph
    made: Any


class Graphs:
    """All graphs of a platform share one pool of memory: they run one after the other on one stream, and whatever a graph
    returned is copied to the host, in stream order, before the next one may write there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def captured(self, eager: Compiled) -> Compiled:
        """`eager` recorded at the first call, and anew for other weights or another state."""
        held: list[_Recorded] = []

        def replayed(weights: Any, state: Any, integers: Any, floats: Any) -> Any:
            if not held or held[0].weights is not weights or held[0].state is not state:
                held[:] = [self._record(eager, weights, state, integers, floats)]
            [one] = held
            one.integers.copy_(integers)
            one.floats.copy_(floats)
            one.graph.replay()
            return one.made

        return replayed

    def _record(self, eager: Compiled, weights: Any, state: Any, integers: Any, floats: Any) -> _Recorded:
        """The first run compiles kernels and must not be recorded; on zeroed buffers it is one of null rows."""
        zeroed = torch.zeros_like(integers), torch.zeros_like(floats)
        eager(weights, state, *zeroed)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = eager(weights, state, *zeroed)
        return _Recorded(weights, state, *zeroed, graph, made)
