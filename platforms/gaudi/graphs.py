"""Steps on a chip: lazy ops that `mark_step` sends off, recorded as HPU graphs. Never run: no Gaudi has been in reach."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ..contract import Pending
from ..families.torch.launch import QueueLauncher, Work

Compiled = Callable[[Any, Any, Any, Any], Any]


def habana(module: str) -> Any:
    """Of Intel's Gaudi software: `core` (importing it registers the device hpu) or `hpu`."""
    return import_module(f"habana_frameworks.torch.{module}")


class LazyLauncher(QueueLauncher):
    """torch's ops on hpu are only noted; `mark_step` compiles and starts what was noted since the last one."""

    def start(self, work: Work) -> Pending:
        return super().start(lambda: _marked(work))

    def finish(self, work: Work) -> Any:
        return super().finish(lambda: _marked(work))

    def close(self) -> None:
        habana("hpu").synchronize()


def _marked(work: Work) -> Any:
    made = work()
    habana("core").mark_step()
    return made


@dataclass
class _Recorded:
    """One graph, and everything whose addresses it holds."""

    weights: Any
    state: Any
    integers: torch.Tensor
    floats: torch.Tensor
    graph: Any
    made: Any


class HpuGraphs:
    """Each shape's step: run once on null rows, recorded, then replayed in one call."""

    def captured(self, eager: Compiled) -> Compiled:
        """Anew for other weights or another state."""
        held: list[_Recorded] = []

        def replayed(weights: Any, state: Any, integers: Any, floats: Any) -> Any:
            if not held or held[0].weights is not weights or held[0].state is not state:
                held[:] = [_record(eager, weights, state, integers, floats)]
            [one] = held
            one.integers.copy_(integers)
            one.floats.copy_(floats)
            one.graph.replay()
            return one.made

        return replayed


def _record(eager: Compiled, weights: Any, state: Any, integers: Any, floats: Any) -> _Recorded:
    zeroed = torch.zeros_like(integers), torch.zeros_like(floats)
    eager(weights, state, *zeroed)
    habana("core").mark_step()
    hpu = habana("hpu")
    hpu.synchronize()
    graph = hpu.HPUGraph()
    with hpu.graph(graph):
        made = eager(weights, state, *zeroed)
    return _Recorded(weights, state, *zeroed, graph, made)
