"""What a model says about its weights: checkpoint names, shapes and logical axes, part by part."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Tensor(NamedTuple):
    """What a weight is made of: its name, global shape, and the logical axis of each dimension.

    stacked: the checkpoint's tensors that lie one after the other along the first dimension; empty: it has one, called `name`.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: tuple[str, ...] = ()

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """As the checkpoint keeps it."""
        return tuple(Tensor(name, self.shape[1:], self.axes[1:]) for name in self.stacked) or (self,)


@dataclass(frozen=True)
class Weight:
    """What one argument of one op is made of: tensors in the order of the op's outputs, then their biases."""

    tensors: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.tensors + self.biases


@dataclass(frozen=True)
class WeightTable:
    """`top` (embedding, final norm, head) and one table per layer; a graph reads them as `w.name`.

    A tied weight names the same checkpoint tensor twice. `ignored` are checkpoint names that the model does not need
    (suffixes, such as ".rotary_emb.inv_freq").
    """

    top: Mapping[str, Weight]
    layers: Sequence[Mapping[str, Weight]]
    ignored: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Weight]:
        yield from self.top.values()
        for layer in self.layers:
            yield from layer.values()

    def tensors(self) -> dict[str, Tensor]:
        """Every checkpoint tensor that is needed, by name."""
        return {tensor.name: tensor for weight in self for part in weight.parts for tensor in part.stored}


class Scope:
    """Weights of one layer, or of the top, as attributes: abstract ones while tracing, prepared handles while running."""

    def __init__(self, entries: Mapping[str, object]) -> None:
        self.__dict__.update(entries)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"this model declares no weight {name!r} here; declared: {', '.join(self.__dict__)}")
