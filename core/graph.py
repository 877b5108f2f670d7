"""A model's whole step, as the core loops it: derive, embed, layer after layer, take rows, head, sample."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..model_zoo.base import Model
from ..ops import Abstract, Batch, BatchShape, Derive, Dim, GroupRows, Sample, Sampling, Scope, TakeRows


class Weights(NamedTuple):
    """Prepared handles by name: a plain tree, so that a framework can pass it to a compiled step."""

    top: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]


class Graph:
    """The steps of one model over a facade `ops`, which traces them or runs them."""

    def __init__(self, model: Model, ops: Any) -> None:
        self.model, self.ops = model, ops

    def hidden(self, weights: Weights, state: Any, batch: Batch) -> Any:
        """[samples, embed]: the rows that go to the head."""
        ops, model = self.ops, self.model
        top = Scope(weights.top)
        x = model.embed(ops, top, batch)
        for i, layer in enumerate(weights.layers):
            x = model.layer(i, ops, x, Scope(layer), batch, state[i])
        return ops.take_rows(TakeRows(size=x.shape[-1], dtype=model.dtype), x, batch.sample)

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


def abstract_batch(groups: int, *, tokens: int = 7, rows: int = 3, samples: int = 2) -> Batch:
    """A batch to trace with; its sizes differ from each other, so that a mix-up shows."""
    def ints(*shape: int) -> Abstract:
        return Abstract(shape, "int32")

    shape = BatchShape(tokens, rows, samples, (5,) * groups, tokens)
    return Batch(
        tokens=ints(tokens), source=ints(tokens), positions=ints(tokens), row=ints(tokens),
        starts=ints(rows + 1), lengths=ints(rows), slot=ints(rows), fresh=ints(rows), adapter=ints(rows),
        sample=ints(samples), sample_slot=ints(samples),
        groups=(GroupRows(ints(rows, 5), ints(tokens)),) * groups, shape=shape,
    )
