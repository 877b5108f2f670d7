"""A model's whole step, as the core loops it: derive, embed, layer after layer, head, sample."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..model_zoo.base import Model
from ..ops import Abstract, Batch, BatchShape, Derive, Dim, GroupRows, Sample, Sampling, Scope


class Weights(NamedTuple):
    """Prepared handles by name: a plain tree, so that a framework can pass it to a compiled step."""

    top: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]


class Graph:
    """The steps of one model over a facade `ops`, which traces them or runs them."""

    def __init__(self, model: Model, ops: Any) -> None:
        self.model, self.ops = model, ops

    def hidden(self, weights: Weights, state: Any, batch: Batch) -> Any:
        """[samples, embed]: the rows that go to the head. The last layer computes no others once it has written its state."""
        model, last = self.model, len(weights.layers) - 1
        x = model.embed(self.ops, Scope(weights.top), batch)
        for i, layer in enumerate(weights.layers):
            x = model.layer(i, self.ops, x, Scope(layer), batch, state[i], batch.sample if i == last else None)
        return x

    def step(self, weights: Weights, state: Any, batch: Batch, sampling: Sampling) -> Any:
        """One step of serving: `Sampled`."""
        batch = self.ops.derive(DERIVE, batch, state)
        logits = self.model.head(self.ops, Scope(weights.top), self.hidden(weights, state, batch), batch)
        return self.ops.sample(self._sample, logits, sampling, batch, state)

    def score(self, weights: Weights, state: Any, batch: Batch, sampling: Sampling) -> Any:
        """Logits [samples, vocab] in float32, and nothing drawn."""
        return self.model.head(self.ops, Scope(weights.top), self.hidden(weights, state, batch), batch)

    @property
    def _sample(self) -> Sample:
        return Sample(vocab=Dim(self.model.vocab_size, "vocab"))


DERIVE = Derive()
TOKENS, ROWS, SAMPLES = 7, 3, 2
"""Of a batch to trace with: they differ from each other, so that a mix-up shows."""


def abstract_batch(groups: int) -> Batch:
    def ints(*shape: int) -> Abstract:
        return Abstract(shape, "int32")

    shape = BatchShape(TOKENS, ROWS, SAMPLES, (5,) * groups, TOKENS)
    return Batch(
        tokens=ints(TOKENS), source=ints(TOKENS), positions=ints(TOKENS), row=ints(TOKENS),
        starts=ints(ROWS + 1), lengths=ints(ROWS), slot=ints(ROWS), fresh=ints(ROWS), adapter=ints(ROWS),
        sample=ints(SAMPLES), sample_slot=ints(SAMPLES),
        groups=(GroupRows(ints(ROWS, 5), ints(TOKENS)),) * groups, shape=shape,
    )
