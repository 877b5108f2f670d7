"""A model's graph, run once on abstract arrays: every spec, every use of a weight, every shape error, before anything loads."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import SpecError
from ..model_zoo.base import Model
from ..ops import DEFAULTS, Sampling, Spec, Weight
from .graph import SAMPLES, Graph, Weights, abstract_batch


@dataclass(frozen=True)
class Use:
    """A weight at a place, as one op needs it."""

    path: str
    weight: Weight
    spec: Spec
    sampled: bool
    """Whether it meets the rows that go to the head, and not every token."""


@dataclass
class Trace:
    """What the graph asked for, in the order of the first call."""

    specs: dict[Spec, int] = field(default_factory=dict)
    """How often each spec is called in a step."""
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class _Placeholder:
    path: str
    weight: Weight


@dataclass(frozen=True)
class _AbstractState:
    """Stands for the state and for each of its cells."""

    group: int = 0

    def __getitem__(self, layer: int) -> _AbstractState:
        return self


class Tracer:
    """The facade `ops` over abstract arrays. An optional op that is `composed` is traced through to its parts."""

    def __init__(self, composed: Callable[[Spec], bool]) -> None:
        self.trace, self.composed = Trace(), composed

    def __getattr__(self, op: str) -> Any:
        if op not in Spec.families:
            raise AttributeError(f"there is no op {op!r}; known: {', '.join(Spec.families)}")
        return partial(self._call, op)

    def _call(self, op: str, spec: Spec, *arrays: Any) -> Any:
        if getattr(spec, "op", None) != op:
            raise SpecError(f"ops.{op} was called with {spec!r}; its first argument is the {Spec.families[op].__name__} spec")
        if self.composed(spec):
            return DEFAULTS[op].run(self, spec, *arrays)
        self.trace.specs[spec] = self.trace.specs.get(spec, 0) + 1
        for array in arrays:
            if isinstance(array, _Placeholder):
                self.trace.uses.append(Use(array.path, array.weight, spec, sampled=arrays[0].shape[0] == SAMPLES))
        return spec.infer(*arrays)


def trace(model: Model, composed: Callable[[Spec], bool] = lambda spec: False) -> Trace:
    """Raises `SpecError` where shapes or dtypes do not meet, or a declared weight is never used."""
    tracer = Tracer(composed)
    table = model.weights
    weights = Weights(
        {name: _Placeholder(name, weight) for name, weight in table.top.items()},
        [{name: _Placeholder(f"layers.{i}.{name}", w) for name, w in layer.items()} for i, layer in enumerate(table.layers)],
    )
    none: Any = None
    Graph(model, tracer).step(weights, _AbstractState(), abstract_batch(len(model.states)), Sampling(*[none] * len(Sampling._fields)))
    used = {use.path for use in tracer.trace.uses}
    for scope in (weights.top, *weights.layers):
        for placeholder in scope.values():
            if placeholder.path not in used:
                raise SpecError(f"{model.model_type}: weight {placeholder.path} is declared and never used; remove it from the table")
    return tracer.trace
