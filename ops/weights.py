"""What a model says about its weights: checkpoint names, shapes and logical axes, part by part."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple


class View(NamedTuple):
    """Where a tensor lies within one of the checkpoint, `name` of `shape`.

    That one, in the shape `split` (None: its own); of it what `taken` says; then with its last two dimensions swapped if `crosswise`.
    """

    name: str
    shape: tuple[int, ...]
    taken: tuple[slice | EllipsisType, ...] = (...,)
    split: tuple[int, ...] | None = None
    crosswise: bool = False

    def of(self, array: Any) -> Any:
        part = array.reshape(self.split or self.shape)[self.taken]
        return part.swapaxes(-1, -2) if self.crosswise else part


class Tensor(NamedTuple):
    """What a weight is made of: its name, global shape, and the logical axis of each dimension.

    stacked: the checkpoint's tensors that lie one after the other along the first dimension. view: where it lies within one of them.
    Neither: the checkpoint has it, called `name`.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stacked: tuple[str, ...] = ()
    view: View | None = None

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """As the checkpoint keeps it."""
        if self.view is not None:
            return (Tensor(self.view.name, self.view.shape, (None,) * len(self.view.shape)),)
        return tuple(Tensor(name, self.shape[1:], self.axes[1:]) for name in self.stacked) or (self,)


@dataclass(frozen=True)
class Weight:
    """What one argument of one op is made of: tensors in the order of the op's outputs, then their biases."""

    tensors: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.tensors + self.biases

    def within(self, *views: View) -> Weight:
        """The same, each part where it lies in a tensor of the checkpoint."""
        parts = tuple(part._replace(view=view) for part, view in zip(self.parts, views, strict=True))
        return Weight(parts[: len(self.tensors)], parts[len(self.tensors) :])


@dataclass(frozen=True)
class WeightTable:
    """`top` (embedding, final norm, head) and one table per layer; a graph reads them as `w.name`.

    A tied weight names the same checkpoint tensor twice. `ignored` are endings of checkpoint names that the model does not need
    (".rotary_emb.inv_freq"), `ignored_modules` beginnings ("model.layers.61.").
    """

    top: Mapping[str, Weight]
    layers: Sequence[Mapping[str, Weight]]
    ignored: tuple[str, ...] = ()
    ignored_modules: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Weight]:
        yield from self.top.values()
        for layer in self.layers:
            yield from layer.values()

    def ignores(self, name: str) -> bool:
        """Whether the model does not need a tensor of the checkpoint."""
        return name.endswith(self.ignored) or name.startswith(self.ignored_modules)

    def tensors(self) -> dict[str, Tensor]:
        """Every checkpoint tensor that is needed, by name."""
        return {tensor.name: tensor for weight in self for part in weight.parts for tensor in part.stored}


class Scope:
    """Weights of one layer, or of the top, as attributes: abstract ones while tracing, prepared handles while running."""

    def __init__(self, entries: Mapping[str, object]) -> None:
        self.__dict__.update(entries)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"this model declares no weight {name!r} here; declared: {', '.join(self.__dict__)}")
