"""What every format of quantized linears answers: which are quantized, in which tensors, and what these hold."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import CheckpointError
from ...ops import Quantized, Scheme
from ...ops.quantize import SCALES

Array = np.ndarray[Any, Any]


class Stored(NamedTuple):
    """A tensor as it must lie in the file: one of some shapes, one of some dtypes."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    optional: bool = False


class Format(ABC):
    """Built from the checkpoint's own settings and its files: tensor name -> file."""

    method: str
    ignored: tuple[str, ...] = ()
    """Endings of tensors that say nothing about the weights."""

    def __init__(self, settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        self.settings, self.files = settings, files

    @abstractmethod
    def scheme(self, module: str) -> Scheme | None:
        """None: its weight is stored in floats."""

    @abstractmethod
    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        """The tensors of a module in codes whose weight is [outputs, inputs]."""

    @abstractmethod
    def weight(self, module: str) -> Quantized | Array:
        """In floats where its codes are of no scheme. Raises `CheckpointError` for values that the scheme cannot mean."""

    def module(self, name: str) -> str | None:
        """The module whose weight a tensor of the model is; None: it is stored in floats, under its own name."""
        module = name.removesuffix(".weight")
        return module if module != name and self.scheme(module) else None

    def text(self, module: str) -> str | None:
        """How a module is stored, for a person; None: in floats."""
        return None if (scheme := self.scheme(module)) is None else str(scheme)

    def idle(self, name: str) -> bool:
        """Whether a tensor that the model does not ask for changes nothing."""
        return name.endswith(self.ignored)

    def tensor(self, name: str) -> Array:
        return self.files[name].tensor(name)

    def scales_dtype(self, name: str) -> str:
        """The name of a tensor's dtype. Raises `CheckpointError` for one that is not there, or that holds no scales."""
        if name not in self.files:
            raise CheckpointError(
                f"the checkpoint lacks {name}, and config.json quantizes it. Remedy: fetch it again, or correct config.json."
            )
        dtype = self.files[name].entries[name].dtype.name
        if dtype not in SCALES:
            raise CheckpointError(f"{name} is stored as {dtype}. Remedy: use a checkpoint with scales in {', '.join(SCALES)}.")
        return str(dtype)

    def number(self, names: Sequence[str], known: Sequence[int], default: int | None = None) -> int:
        """An integer of the settings under its first name that is there."""
        value = next((self.settings[name] for name in names if self.settings.get(name) is not None), default)
        if isinstance(value, bool) or not isinstance(value, int) or (known and value not in known):
            raise self.error(f"{names[0]!r} is {value!r}", f"use a checkpoint with {' or '.join(map(str, known)) or 'an integer'}")
        return value

    def group(self, *names: str) -> int | None:
        """The inputs that share a scale; -1 means all of them."""
        size = self.number(names, (), 128)
        if size == 0 or size < -1:
            raise self.error(f"{names[0]!r} is {size}", "use a checkpoint with a size above 0, or -1 for whole rows")
        return None if size == -1 else size

    def error(self, found: str, remedy: str) -> CheckpointError:
        return CheckpointError(f"config.json, 'quantization_config' of {self.method}: {found}. Remedy: {remedy}.")


def check_order(name: str, order: Array, group: int | None) -> None:
    """Raise `CheckpointError` unless inputs stand in groups one after the other, as they do without `desc_act`."""
    inputs = order.shape[0]
    if not np.array_equal(order, np.arange(inputs) // (group or inputs)):
        raise CheckpointError(
            f"{name} says that the inputs were reordered (desc_act, or actorder group), and kernels take groups one after the other. "
            "Remedy: use a checkpoint that was quantized with desc_act false (actorder weight or static is fine)."
        )


def check_zero(name: str, zeros: Array, settings: str) -> None:
    """Raise `CheckpointError` unless a symmetric checkpoint's zero points are all in the middle."""
    if zeros.any():
        raise CheckpointError(
            f"{name} has zero points apart from the middle, and config.json says {settings}. "
            "Remedy: correct config.json, or fetch the checkpoint again."
        )
