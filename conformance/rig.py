"""A platform on the test bench: one op at a time through the contract alone, and a problem's whole life."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..core.localize import Mesh, local_spec
from ..core.resolve import BoundOps, Choice, Resolution
from ..errors import ResolutionError
from ..ops import DEFAULTS, BatchShape, Kernel, Packed, Spec, StateArray, StateGroup, empty
from ..platforms import registry
from ..platforms.contract import Buckets, Options, Pending, Platform, Step
from .case import Failed, Unsupported
from .oracle import Oracle
from .padding import cut, padded, padded_problem
from .problem import Array, Given, Paged, Problem, elsewhere, other_weight

IDLE = BatchShape(tokens=1, rows=1, samples=1, blocks=(1,), longest_query=1)
NO_GROUP = StateGroup("none", (0,), {"k": StateArray(1, 1, "float32"), "v": StateArray(1, 1, "float32")})

WRITING = ("write_kv", "qkv_rope_write", "sample")
"""Ops that change the state: a second call would be seen in it."""


@dataclass
class Answer:
    """What one run gave, on the host: the op's results, and the state behind it."""

    results: list[Array]
    blocks: dict[str, Array] = field(default_factory=dict)
    """name -> [blocks, kv_heads, block_tokens, dim]"""
    last_token: Array | None = None
    """[slots + 1], where the problem has any."""


class Rig:
    """One platform. Kernels of installed packs come first, as in serving."""

    def __init__(
        self, platform: Platform, oracle: Oracle | None = None, reopen: Callable[[], Platform] | None = None,
        device: Callable[[int], Platform] | None = None, partner: Callable[[], Rig] | None = None,
    ) -> None:
        """reopen: another platform like this one (default: of its class, without options). device: the one of a rank.

        partner: the rig that this one exchanges blocks with (default: the reference's).
        """
        self.platform = platform
        self.reopen = reopen or (lambda: type(platform)(Options()))
        self.device = device or (lambda rank: self.reopen())
        self.oracle = oracle or Oracle()
        self._partner = partner or (lambda: Rig(self.oracle.platform, self.oracle))
        packs = registry.kernel_packs(platform.name)
        self.kernels = [kernel for pack in packs for kernel in pack.kernels] + list(platform.kernels())

    @cached_property
    def partner(self) -> Rig:
        return self._partner()

    def supporting(self, spec: Spec) -> list[Kernel]:
        """Every kernel that says yes; where nothing is the device's own, the first, which serving would take.

        Raises `Unsupported` with all reasons if none does, and checks that binding is refused.
        """
        offered = [kernel for kernel in self.kernels if kernel.op == spec.op]
        reasons = [(kernel, kernel.supports(spec)) for kernel in offered]
        for kernel, reason in reasons:
            if reason is not None:
                self._check_refusal(spec, kernel, reason)
        yes = [kernel for kernel, reason in reasons if reason is None]
        if not yes and spec.op in DEFAULTS:
            return [self._composed(spec)]
        if not yes:
            raise Unsupported("; ".join(f"{kernel.name}: {reason}" for kernel, reason in reasons) or f"no kernel for {spec.op}")
        return yes if self.thorough else yes[:1]

    @property
    def thorough(self) -> bool:
        """On a device every check is made; an interpreter's or an emulator's time buys more cases with fewer repeats in each."""
        return self.platform.capabilities.grade == "device"

    def _composed(self, spec: Spec) -> Kernel:
        """The default composition as if it were a kernel, over the first supporting kernel of each part."""
        default = DEFAULTS[spec.op]
        choices = {part: Choice(part, part, self.supporting(part)[0], (), 1) for part in default.requires(spec)}
        ops, prepare = BoundOps(Resolution(choices)), None
        for part, choice in choices.items():
            if choice.kernel and choice.kernel.prepare:
                prepare = partial(_prepared, choice.kernel.prepare, part)
        return Kernel(spec.op, "composed", lambda _: None, lambda op, *arrays: default.run(ops, op, *arrays), prepare)

    def _check_refusal(self, spec: Spec, kernel: Kernel, reason: str) -> None:
        if not isinstance(reason, str) or len(reason.strip()) < 4:
            raise Failed(f"{kernel.name} says {reason!r} to {spec}; a refusal is a reason that a person can read")
        try:
            BoundOps(Resolution({spec: Choice(spec, spec, kernel, (), 1)}))
        except ResolutionError:
            return
        raise Failed(f"{kernel.name} refuses {spec.op} ({reason}) and can be bound to it all the same")

    def prepare(self, kernel: Kernel, problem: Problem) -> Any:
        if kernel.prepare is not None:
            return kernel.prepare(problem.spec, list(problem.weight))
        return tuple(self.platform.put(part) for part in problem.weight)

    def runner(self, kernel: Kernel, problem: Problem, *, strided: bool = False, busy: bool = False) -> Callable[[Problem], Answer]:
        """A compiled step that runs `kernel` on problems of this shape.

        Other weights of the same spec are prepared before its own. strided: arrays come as slices of larger ones. busy: the
        step calls the kernel again, with the other weights and other arrays, before its first results are taken.
        """
        spec = local_spec(problem.spec, Mesh.single())
        others = self.prepare(kernel, replace(problem, weight=tuple(map(other_weight, problem.weight)))) if problem.weight else ()
        weight = self.prepare(kernel, problem) if problem.weight else ()
        packed = self.packed(problem.packed or idle())

        def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
            given_arrays = enumerate(zip(weights["arrays"], wides, strict=True))
            arrays = tuple(_inner(array, place) if wide else array for place, (array, wide) in given_arrays)
            given = {Given.WEIGHT: weights["weight"], Given.BATCH: batch, Given.SAMPLING: sampling, Given.CELL: state[0],
                     Given.STATE: state}
            result = problem.view(kernel.run(spec, *problem.fill(given, arrays)))
            if busy and spec.op not in WRITING:
                kernel.run(spec, *problem.fill({**given, Given.WEIGHT: weights["others"]}, weights["other_arrays"]))
            return tuple(part for part in (result if isinstance(result, tuple) else (result,)) if part is not None)

        wides = [strided and array.ndim > 0 and array.shape[-1] > 0 for array in problem.arrays]
        compiled = self.platform.compile(step, packed.shape)

        def run(given: Problem) -> Answer:
            one = self.padded(given)
            hosts = [_outer(array, place) if wide else array for place, (array, wide) in enumerate(zip(one.arrays, wides, strict=True))]
            arrays = tuple(self.platform.put(host.copy()) for host in hosts)
            state = self.state(one)
            packed = self.packed(one.packed or idle())
            sent = packed._replace(integers=packed.integers.copy(), floats=packed.floats.copy())
            handles = {"arrays": arrays, "weight": weight}
            if busy:
                handles |= {"other_arrays": tuple(self.platform.put(elsewhere(host)) for host in hosts), "others": others}
            pending = self.platform.submit(compiled, handles, state, sent)
            results = self.cut(given, [np.array(part) for part in pending.result()])
            for host, array in zip(hosts, arrays, strict=True):
                if not _same(self.platform.fetch(array), host):
                    raise Failed("it changed one of its inputs")
            if not (_same(sent.integers, packed.integers) and _same(sent.floats, packed.floats)):
                raise Failed("it changed the batch")
            kept = None if one.last_token is None else self.platform.fetch(state.last_token)
            return Answer(results, self.blocks(one, state), kept)

        return run

    @property
    def static(self) -> Buckets | None:
        """The only shapes that the platform takes; None: it takes any."""
        said = self.platform.capabilities
        return said.buckets if said.static_shapes else None

    def padded(self, problem: Problem) -> Problem:
        return padded_problem(problem, self.static) if self.static else problem

    def packed(self, given: Packed) -> Packed:
        return padded(given, self.static) if self.static else given

    def cut(self, problem: Problem, results: list[Array]) -> list[Array]:
        """What `problem`, as it was before it was padded, asked for."""
        return cut(problem, results, self.static) if self.static else results

    def submit(self, step: Step, weights: Any, state: Any, given: Packed) -> Pending:
        """A step in a shape that the platform takes, compiled and started."""
        packed = self.packed(given)
        return self.platform.submit(self.platform.compile(step, packed.shape), weights, state, packed)

    def state(self, problem: Problem, layers: int = 1) -> Any:
        """The state that a problem starts from, the same in each layer."""
        paged = problem.paged
        group, count = (NO_GROUP, 2) if paged is None else (replace(paged.group, layers=tuple(range(layers))), len(paged.live))
        state = self.platform.allocate([group], [count], slots=1 if problem.last_token is None else len(problem.last_token) - 1)
        if problem.last_token is not None:
            state.last_token = self.platform.put(problem.last_token.copy())
        if paged is not None:
            self.write(state, paged, range(count), layers)
        return state

    def write(self, state: Any, paged: Paged, places: Sequence[int], layers: int = 1) -> None:
        """Block b of `paged` to places[b], the same in each layer."""
        canonical = {name: array.transpose(1, 0, 2, 3).reshape(1, array.shape[1], -1, array.shape[3])
                     for name, array in paged.arrays.items()}
        self.platform.write_blocks(state, 0, places, {name: np.repeat(array, layers, axis=0) for name, array in canonical.items()})

    def read(self, state: Any, places: Sequence[int]) -> dict[str, Array]:
        """name -> [blocks, kv_heads, block_tokens, dim] of the first layer."""
        return {
            name: array[0].reshape(array.shape[1], len(places), -1, array.shape[3]).transpose(1, 0, 2, 3)
            for name, array in self.platform.read_blocks(state, 0, places).items()
        }

    def blocks(self, problem: Problem, state: Any) -> dict[str, Array]:
        """name -> [blocks, kv_heads, block_tokens, dim] of the first layer."""
        return {} if problem.paged is None else self.read(state, range(len(problem.paged.live)))


def _prepared(prepare: Callable[[Any, Sequence[Any]], Any], part: Spec, _: Spec, weight: Sequence[Any]) -> Any:
    """A composed op's weight is the one of the part that has a weight."""
    return prepare(part, weight)


def idle() -> Packed:
    packed, _, _ = empty(IDLE)
    return packed


def _outer(array: Array, place: int) -> Array:
    """The array inside a larger one, offset by one and with a longer stride, each argument's another; the rest is NaN."""
    filler = np.nan if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn") else 0
    outer = np.full((*array.shape[:-1], array.shape[-1] + 3 + place), filler, array.dtype)
    _inner(outer, place)[:] = array
    return outer


def _inner(array: Any, place: int) -> Any:
    return array[..., 1 : -2 - place]


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def expect_same(what: str, found: Sequence[Array], expected: Sequence[Array]) -> None:
    """Raise `Failed` unless all bits agree. Any NaN is like any other: how it is written, a chip's vectors and scalars do not agree on."""
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        unlike = a.shape != b.shape or a.dtype != b.dtype
        if unlike or (_bits(a) != _bits(b)).any():
            differing = "shape or dtype" if unlike else f"{int(np.sum(_bits(a) != _bits(b)))} of {a.size} values"
            raise Failed(f"{what}: result {place} differs in {differing}")


def _bits(array: Array) -> Array:
    bits = np.atleast_1d(np.ascontiguousarray(array)).view(f"u{array.itemsize}")
    return bits if array.dtype.kind in "iub" else np.where(np.atleast_1d(np.isnan(array)), 0, bits + 1)
