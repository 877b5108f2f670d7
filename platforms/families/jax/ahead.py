"""A JAX platform aimed at devices that are not there: steps are compiled for them, nothing runs, and arrays have no numbers."""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ....ops import BatchShape, Kernel, Packed, Quantized, StateGroup
from ...contract import HostArrays, KernelCode, Options, Pending, Step, StepCode
from .platform import JaxPlatform
from .state import JaxState

if TYPE_CHECKING:
    Base = JaxPlatform
else:
    Base = object
KERNEL_NAME = re.compile(r'kernel_name = "([^"]+)"')


class Ahead(Base):
    """Goes before a `JaxPlatform` among a class's bases; that one's `find_device` gives devices of a topology.

    Weights are prepared on the host, one of each kind, and only their shapes are kept.
    """

    def __init__(self, options: Options) -> None:
        if not jax.config.jax_platforms:
            jax.config.update("jax_platforms", "cpu")  # before it looks for the chip, which takes a minute
        super().__init__(options)
        self.device = jax.local_devices(backend="cpu")[0]
        self.capabilities = replace(self.capabilities, grade="compiled", warm_up=False)
        self.compiled: list[StepCode] = []
        self.codes: list[KernelCode] = []

    def kernels(self) -> Sequence[Kernel]:
        return [kernel if kernel.prepare is None else replace(kernel, prepare=_shapes_of(kernel.prepare)) for kernel in super().kernels()]

    def put(self, host: np.ndarray[Any, Any]) -> Any:
        return jax.ShapeDtypeStruct(host.shape, host.dtype)

    def fetch(self, array: Any) -> np.ndarray[Any, Any]:
        return np.zeros(array.shape, array.dtype)

    def join(self, parts: Iterable[Any]) -> Any:
        """All devices' parts are alike, so that the first one will do."""
        count = self.devices.count
        return jax.tree.map(lambda one: jax.ShapeDtypeStruct((one.shape[0] * count, *one.shape[1:]), one.dtype), next(iter(parts)))

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> JaxState:
        state: JaxState = jax.eval_shape(lambda: JaxState.zeros(self.devices, groups, blocks, slots))
        return state

    def compile(self, step: Step, shape: BatchShape) -> Any:
        return shape, super().compile(step, shape)

    def submit(self, compiled: Any, weights: Any, state: JaxState, packed: Packed) -> Pending:
        shape, program = compiled
        parts, whole = self.devices.parts, self.devices.whole
        lowered = program.lower(_placed(weights, parts), _placed(state, parts), *_placed(packed[1:], whole))
        started = time.perf_counter()
        try:
            made = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            code = StepCode(shape, time.perf_counter() - started, reason=_first_lines(str(error)))
        else:
            code = _measured(shape, time.perf_counter() - started, made)
        self.compiled.append(code)
        names = " ".join(dict.fromkeys(KERNEL_NAME.findall(lowered.as_text())))
        self.codes += [KernelCode(names, self.options.extra["target"], str(shape), "", reason=code.reason)] if names else []
        return _Zeros(lowered.out_info[0])

    def read_blocks(self, state: JaxState, group: int, blocks: Sequence[int]) -> HostArrays:
        layers = state.group(group)
        return {name: np.zeros((len(layers), array.shape[1], len(blocks) * array.shape[2], array.shape[3]), array.dtype)
                for name, array in layers[0].items()}

    def write_blocks(self, state: JaxState, group: int, blocks: Sequence[int], arrays: HostArrays) -> None:
        """There is nothing to write to."""

    def copy_blocks(self, state: JaxState, group: int, sources: Sequence[int], targets: Sequence[int]) -> None:
        """There is nothing to copy."""


class _Zeros:
    def __init__(self, shapes: Any) -> None:
        self._shapes = shapes

    def result(self) -> Any:
        return jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), self._shapes)


def _shapes_of(prepare: Callable[[Any, Sequence[Any]], Any]) -> Callable[[Any, Sequence[Any]], Any]:
    """`prepare`, whose handles keep nothing but shapes; weights that are alike are prepared once."""
    known: dict[Any, Any] = {}

    def shapes(spec: Any, parts: Sequence[Any]) -> Any:
        key = (spec, tuple(_kind(part) for part in parts))
        if key not in known:
            known[key] = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), prepare(spec, parts))
        return known[key]

    return shapes


def _kind(part: Any) -> Any:
    if isinstance(part, Quantized):
        return tuple(None if one is None else (one.shape, one.dtype) for one in part)
    return type(part), getattr(part, "shape", None) or part.weight.shape, getattr(part, "dtype", None)


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding), tree)


def _measured(shape: BatchShape, seconds: float, made: Any) -> StepCode:
    memory, costs = made.memory_analysis(), made.cost_analysis()
    return StepCode(
        shape, seconds, argument_bytes=memory.argument_size_in_bytes, temporary_bytes=memory.temp_size_in_bytes,
        result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes, code_bytes=memory.generated_code_size_in_bytes,
        flops=float((costs or {}).get("flops", 0.0)),
    )


def _first_lines(text: str, count: int = 3) -> str:
    return " ".join(line.strip() for line in text.splitlines()[:count] if line.strip())
