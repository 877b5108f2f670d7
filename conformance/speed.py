"""How fast a kernel is: a step of layers that are each this op alone, with memory of their own, as in a model."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any

import numpy as np

from ..core.localize import Mesh, local_spec
from ..ops import DTYPES, Abstract, Attention, BatchShape, Dim, Embedding, Kernel, Linear, Spec, TakeRows, empty, unpack
from .case import Failed
from .judge import check_memory, compare
from .limits import Limits
from .oracle import Expected
from .problem import Array, Given, Problem
from .rig import Answer, Rig, expect_same

FOOTPRINT_BYTES = 192 << 20
"""What all layers of a step touch together: more than a cache holds."""
HELD_BYTES = 512 << 20
"""What their inputs may occupy, read or not."""
MOST_LAYERS = 128
LARGE_BYTES = 1 << 20
"""A larger result stays on the device; one of its rows, chosen by the batch, comes back."""
SECONDS, LEAST_STEPS, MOST_STEPS = 0.5, 5, 50


@dataclass(frozen=True)
class Work:
    """A problem, and how a large result of its timed run is checked."""

    problem: Problem
    row: Callable[[int], Problem] | None = None
    """token -> the problem of that token alone, whose result is the token's row. None: arrays are cut, and the rest stays."""

    def alone(self, token: int) -> Problem:
        if self.row is not None:
            return self.row(token)
        assert self.problem.packed is not None
        packed, batch, _ = empty(BatchShape(1, 1, 1, (1,), 1))
        batch.positions[0] = unpack(*self.problem.packed)[0].positions[token]
        cut = (one[token : token + 1] if isinstance(one, np.ndarray) else one for one in self.problem.arguments)
        return replace(self.problem, arguments=tuple(cut), packed=packed)


@dataclass(frozen=True)
class Speed:
    """One op on one platform. bytes: read and written once, without which nobody can do it. flops: of products alone."""

    kernel: str
    seconds: float
    bytes: int
    flops: int
    least_seconds: float | None
    """By the machine's limits; None where they are unknown."""
    by: str
    """memory or compute: what bounds it."""

    @property
    def of_limit(self) -> float | None:
        return None if self.least_seconds is None else self.least_seconds / self.seconds

    def __str__(self) -> str:
        told = "limits unknown" if self.of_limit is None else f"{self.of_limit:.2f} of the limit by {self.by}"
        rates = f"{self.bytes / self.seconds / 1e9:.1f} GB/s, {self.flops / self.seconds / 1e9:.0f} GFLOP/s"
        return f"{told}; {1e3 * self.seconds:.3f} ms, {rates}"


def measure(rig: Rig, work: Work, limits: Limits) -> Speed:
    """The kernel that serving would take, checked against the oracle in its timed run. Raises `Failed` or `Unsupported`."""
    problem = work.problem
    kernel = rig.supporting(problem.spec)[0]
    size, flops = work_bytes(problem), work_flops(problem)
    layers = max(1, min(MOST_LAYERS, -(-FOOTPRINT_BYTES // size), HELD_BYTES // _held(problem)))
    step, state = _step(rig, kernel, problem, layers)
    step()
    seconds: list[float] = []
    answers = []
    while len(seconds) < LEAST_STEPS or (sum(seconds) < SECONDS and len(seconds) < MOST_STEPS):
        start = time.perf_counter()
        answers.append(step())
        seconds.append(time.perf_counter() - start)
    _check(rig, work, kernel, answers, state, layers)
    least, by = _least(problem.spec, size, flops, limits)
    return Speed(kernel.name, median(seconds) / layers, size, flops, least, by)


def _step(rig: Rig, kernel: Kernel, problem: Problem, layers: int) -> tuple[Callable[[], list[Array]], Any]:
    """A compiled step over placed inputs, and its state. Layers hold copies, so that no cache and no compiler makes them one."""
    assert problem.packed is not None
    spec, platform = local_spec(problem.spec, Mesh.single()), rig.platform
    copies = [replace(problem, weight=tuple(part.copy() for part in problem.weight)) for _ in range(layers)]
    weights = [rig.prepare(kernel, one) if one.weight else () for one in copies]
    arrays = [tuple(platform.put(array.copy()) for array in problem.arrays) for _ in range(layers)]
    state, picks = rig.state(problem, layers), _picks(rig, problem)

    def run(placed: Any, state: Any, batch: Any, sampling: Any) -> Any:
        given = {Given.BATCH: batch, Given.SAMPLING: sampling, Given.STATE: state}
        made: list[Any] = []
        for layer in range(layers):
            here = given | {Given.WEIGHT: placed["weights"][layer], Given.CELL: state[layer if problem.paged else 0]}
            result = problem.view(kernel.run(spec, *problem.fill(here, placed["arrays"][layer])))
            parts = [part for part in (result if isinstance(result, tuple) else (result,)) if part is not None]
            made += [part if pick is None else pick(part, batch) for part, pick in zip(parts, picks, strict=True)]
        return tuple(made)

    compiled, placed = platform.compile(run, problem.packed.shape), {"weights": weights, "arrays": arrays}
    return lambda: [np.asarray(part) for part in platform.submit(compiled, placed, state, problem.packed).result()], state


def _picks(rig: Rig, problem: Problem) -> list[Callable[[Any, Any], Any] | None]:
    """For each result: how one row of it is taken on the device, or None where it comes back whole."""
    picks: list[Callable[[Any, Any], Any] | None] = []
    for one in _outputs(problem):
        if isinstance(one, Abstract) and _nbytes(one) > LARGE_BYTES:
            spec = TakeRows(size=Dim(prod(one.shape[1:])), dtype=one.dtype)
            picks.append(_pick(rig.supporting(spec)[0], spec, one.shape[0]))
        else:
            picks.append(None)
    return picks


def _pick(kernel: Kernel, spec: TakeRows, tokens: int) -> Callable[[Any, Any], Any]:
    return lambda result, batch: kernel.run(spec, result.reshape(tokens, spec.size.size), batch.sample)


def _check(rig: Rig, work: Work, kernel: Kernel, answers: list[list[Array]], state: Any, layers: int) -> None:
    """Every step gave the same bits, every layer what the oracle says."""
    problem, each = work.problem, len(answers[0]) // layers
    for answer in answers[1:]:
        expect_same(f"{kernel.name}: a later step", answer, answers[0])
    assert problem.packed is not None
    token = int(unpack(*problem.packed)[0].sample[0])
    picked = [isinstance(one, Abstract) and _nbytes(one) > LARGE_BYTES for one in _outputs(problem)]
    alone = work.alone(token) if any(picked) else problem
    expected: Expected = rig.oracle.compute(alone)
    for layer in range(layers):
        results = answers[0][layer * each : (layer + 1) * each]
        shaped = [result.reshape(wanted.shape) if one else result[token : token + 1] if any(picked) else result
                  for result, wanted, one in zip(results, expected.results, picked, strict=True)]
        try:
            compare(alone, Answer(shaped), expected)
        except Failed as reason:
            raise Failed(f"{kernel.name}: in layer {layer} of a timed step, {reason}") from None
    if problem.paged is not None and problem.paged.written.any():
        check_memory(problem, Answer([], rig.blocks(problem, state)))


def _outputs(problem: Problem) -> list[Any]:
    if problem.spec.op == "sample":
        return [None]
    arguments, _, _ = problem.host_arguments()
    made = problem.spec.infer(*(Abstract(one.shape, one.dtype.name) if isinstance(one, np.ndarray) else one for one in arguments))
    return [] if made is None else [made] if isinstance(made, Abstract) else list(made)


def _nbytes(one: Abstract) -> int:
    return prod(one.shape) * DTYPES[one.dtype].itemsize


def _held(problem: Problem) -> int:
    paged = () if problem.paged is None else problem.paged.arrays.values()
    return sum(array.nbytes for array in (*problem.arrays, *problem.weight, *paged))


def work_bytes(problem: Problem) -> int:
    """Inputs, weights, live memory and results, each once. Of a table that is looked up, the rows that are read."""
    results = sum(_nbytes(one) for one in _outputs(problem) if one is not None)
    inputs = sum(array.nbytes for array in problem.arrays)
    weights = results if isinstance(problem.spec, Embedding) else sum(part.nbytes for part in problem.weight)
    paged = problem.paged
    touched = 0 if paged is None else sum(
        int((paged.written if paged.written.any() else paged.live).sum()) * array.shape[1] * array.shape[3] * array.itemsize
        for array in paged.arrays.values())
    return int(inputs + weights + results + touched)


def work_flops(problem: Problem) -> int:
    """Two for each product of a linear; for each visible key of an attention two for each of its dims."""
    match problem.spec:
        case Linear() as spec:
            return 2 * len(problem.arrays[0]) * spec.input.size * sum(dim.size for dim in spec.outputs)
        case Attention() as spec:
            assert problem.packed is not None
            seen = np.asarray(unpack(*problem.packed)[0].positions, np.int64) + 1
            visible = int(np.minimum(seen, spec.window or seen).sum())
            return 2 * visible * spec.heads.size * (spec.key_dim + spec.value_dim)
        case _:
            return 0


def _least(spec: Spec, size: int, flops: int, limits: Limits) -> tuple[float | None, str]:
    if limits.read_bytes_per_second is None:
        return None, "nothing that was measured"
    memory = size / limits.read_bytes_per_second
    peak = limits.flops.get(getattr(spec, "dtype", "float32"))
    compute = flops / peak if peak else 0.0
    return max(memory, compute), "compute" if compute > memory else "memory"
