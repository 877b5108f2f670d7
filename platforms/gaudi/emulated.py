"""Gaudi's constraints on the CPU, enforced while a step runs: whoever breaks one is told the op, the line, and what to do instead.

Refused are shapes outside the buckets, sizes that depend on data, reads of the device by the host, 64-bit numbers, and a step that is not
the same program each time. torch's own tags say which ops are the second and the third.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import CapacityError, SpecError
from ...ops import BatchShape
from ..contract import Buckets, Step

Compiled = Callable[[Any, Any, Any, Any], Any]
READS = {
    getattr(torch.Tensor, name): name
    for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
"""What waits for the chip. On the CPU some of them call no op at all, so that torch's tags cannot tell."""
INSTEAD = {
    "read": "keep the value on the device (torch.where, a mask, index_select), and return it from the step if the host needs it",
    "nonzero": "use torch.where with three arguments, or a mask",
    "masked_select": "use masked_fill or torch.where, and keep the shape",
    "index": "use torch.where or masked_fill; a boolean index has as many elements as are true",
    "repeat_interleave": "give `repeats` as a number, or pick rows with index_select",
    "unique": "sort, and compare neighbours",
}
WORD = 2**31


class Graphs:
    """Counts the graphs of each step, and wraps it in the constraints."""

    def __init__(self, buckets: Buckets, most: int) -> None:
        self._buckets, self._most = buckets, most
        self._shapes: WeakKeyDictionary[Any, set[BatchShape]] = WeakKeyDictionary()
        self.compiled = 0
        """How many graphs a chip would have compiled so far."""

    def watched(self, step: Step, eager: Compiled, shape: BatchShape) -> Compiled:
        """Raises `SpecError` for a shape outside the buckets, and `CapacityError` for one too many."""
        if self._buckets.pad(shape) != shape:
            raise SpecError(f"gaudi takes steps in the shapes of its buckets alone: {shape} is not one of them. "
                            f"Pad it to {self._buckets.pad(shape)} (Capabilities.buckets.pad).")
        known = self._shapes.setdefault(getattr(step, "__self__", step), set())
        if shape not in known:
            if len(known) == self._most:
                raise CapacityError(f"this step was compiled for {self._most} shapes, and {shape} is another; each takes the chip's "
                                    "compiler seconds to minutes. Widen the buckets, or find what is not padded.")
            known.add(shape)
            self.compiled += 1
        runs: list[tuple[str, ...]] = []

        def run(weights: Any, state: Any, integers: Any, floats: Any) -> Any:
            with Calls(), Ops() as ops:
                made = eager(weights, state, integers, floats)
            if len(runs) == 2:
                _compare(tuple(ops.trace), runs[1])
            else:
                runs.append(tuple(ops.trace))
            return made

        return run


def _compare(now: tuple[str, ...], then: tuple[str, ...]) -> None:
    """A graph is recorded at a step's second run, after one that fills caches, and replayed from then on."""
    if now == then:
        return
    place = next((i for i, pair in enumerate(zip(now, then, strict=False)) if pair[0] != pair[1]), min(len(now), len(then)))
    first, other = (run[place] if place < len(run) else "the end" for run in (then, now))
    raise SpecError(f"a step of one shape is one graph, and its op {place} was {first} when it was recorded and is {other} now. "
                    "Branch on the spec and the batch's shape alone.")


class Calls(TorchFunctionMode):
    """torch's functions, before they become ops."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = READS.get(function)
        if name is None and function is torch.Tensor.to and _names_a_device((*args[1:], *(kwargs or {}).values())):
            name = "to"
        if name is not None:
            raise SpecError(f"Tensor.{name} at {_where()} makes the host wait for the chip inside a step; {INSTEAD['read']}.")
        return function(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    """Every aten op of a step, in order; one that is made of others as those."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        with self:
            parts = function.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        self._refuse(function, name, args)
        made = function(*args, **(kwargs or {}))
        results = made if isinstance(made, tuple | list) else (made,)
        for result in results:
            if isinstance(result, torch.Tensor):
                _refuse_wide(name, result)
        shapes = " ".join(f"{tuple(one.shape)}" for one in results if isinstance(one, torch.Tensor))
        self.trace.append(f"aten.{name} -> {shapes}")
        return made

    def _refuse(self, function: Any, name: str, args: Any) -> None:
        if torch.Tag.data_dependent_output in function.tags:
            raise SpecError(f"aten.{name} at {_where()} makes the host wait for the chip inside a step; {INSTEAD['read']}.")
        if name.rstrip("_").startswith("index"):
            dynamic = any(isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in _flat(args[1:2]))
        else:
            dynamic = torch.Tag.dynamic_output_shape in function.tags
        if dynamic:
            instead = next((text for key, text in INSTEAD.items() if key in name), "give it a size that the shapes say")
            raise SpecError(f"aten.{name} at {_where()} has a size that depends on data, and Gaudi's graphs are static; {instead}.")


def _refuse_wide(name: str, result: torch.Tensor) -> None:
    if result.dtype in (torch.float64, torch.complex64, torch.complex128):
        raise SpecError(f"aten.{name} at {_where()} gives {result.dtype}, which Gaudi has not; use float32.")
    if result.dtype == torch.int64 and result.numel():
        low, high = (int(one) for one in torch.aminmax(result))
        if not -WORD <= low <= high < WORD:
            raise SpecError(f"aten.{name} at {_where()} gives integers from {low} to {high}; Gaudi keeps 32 bits. "
                            "Use int32 that wraps.")


def _flat(tree: Any) -> list[Any]:
    return [leaf for one in tree for leaf in _flat(one)] if isinstance(tree, tuple | list) else [tree]


def _names_a_device(values: tuple[Any, ...]) -> bool:
    return any(isinstance(value, str | torch.device) for value in values)


def _where() -> str:
    """The innermost line outside torch and this file."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename.replace("/families/torch/", "/")):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"
