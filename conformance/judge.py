"""How an op's case runs: cold, warm and again, strided, poisoned, permuted, alone; each against float64 or to the bit."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..ops import DTYPES, Kernel, tolerance
from .address import Address
from .case import Failed, Unsupported
from .oracle import Expected
from .problem import Array, Problem
from .rig import Answer, Rig, expect_same


def judge(problem: Problem, address: Address, rig: Rig) -> tuple[str, ...]:
    """Every kernel of the platform that supports the spec; their names. Raises `Failed` or `Unsupported`."""
    kernels = supporting(problem, rig)
    expected = rig.oracle.expected(problem, address)
    for kernel in kernels:
        try:
            _judge(problem, address, kernel, rig, expected)
        except Failed as reason:
            raise Failed(f"{kernel.name}: {reason}") from None
    return tuple(kernel.name for kernel in kernels)


def supporting(problem: Problem, rig: Rig) -> list[Kernel]:
    """Every kernel of the platform that takes the problem. Raises `Unsupported`."""
    kernels = rig.supporting(problem.spec)
    if problem.paged is not None and problem.paged.group.block_tokens not in (known := rig.platform.capabilities.block_tokens):
        raise Unsupported(f"capabilities: blocks of {', '.join(map(str, known))} tokens")
    return kernels


def _judge(problem: Problem, address: Address, kernel: Kernel, rig: Rig, expected: Expected) -> None:
    random = address.random()
    cold = problem if problem.paged is None else problem.with_memory(problem.paged.poisoned(np.nan, random))
    run = rig.runner(kernel, cold)
    first = run(cold)
    compare(problem, first, expected)
    _expect_again("a second call", cold, run(cold), first)
    _expect_again("compiled anew, and with another call behind it in the same step", cold, rig.runner(kernel, cold, busy=True)(cold), first)
    if problem.arrays and any(array.size for array in problem.arrays):
        _judge_other(cold, address, kernel, rig, run)
        strided = rig.runner(kernel, cold, strided=True)(cold)
        _compare_bits_or_class("on strided inputs", problem, kernel, strided, first, expected)
        if problem.paged is not None:
            check_memory(cold, strided)
    if problem.paged is not None:
        _judge_paged(cold, kernel, run, first, random)
    if problem.alone is not None:
        rows = range(problem.rows) if rig.thorough else random.permutation(problem.rows)[:FEW]
        _judge_alone(problem, kernel, rig, first, rows)


def _judge_other(problem: Problem, address: Address, kernel: Kernel, rig: Rig, run: Callable[[Problem], Answer]) -> None:
    """The step that ran on the first inputs, on others. Over paged memory it is compared with a step that saw no other ones."""
    other = problem.other()
    answer = run(other)
    try:
        if problem.paged is None:
            kept = Address(address.family, (*address.params, ("inputs", "other")))
            compare(other, answer, rig.oracle.kept(kept, lambda: rig.oracle.compute(other)))
        else:
            expect_same("it depends on the inputs before", answer.results, rig.runner(kernel, other)(other).results)
            check_memory(other, answer)
    except Failed as reason:
        raise Failed(f"on other inputs than those of the call before: {reason}") from None


def _judge_paged(problem: Problem, kernel: Kernel, run: Callable[[Problem], Answer], first: Answer, random: np.random.Generator) -> None:
    assert problem.paged is not None
    garbage = run(problem.with_memory(problem.paged.poisoned(None, random)))
    expect_same("with finite garbage instead of NaN in slots that no row may read", garbage.results, first.results)
    order = np.concatenate([[0], 1 + random.permutation(len(problem.paged.live) - 1)])
    moved = problem.moved(order)
    elsewhere = run(moved)
    expect_same("with its blocks elsewhere", elsewhere.results, first.results)
    check_memory(problem, first)
    check_memory(moved, elsewhere)


def _expect_again(what: str, problem: Problem, answer: Answer, first: Answer) -> None:
    """The same as the first answer, to the bit, in the results and in the state."""
    expect_same(what, answer.results, first.results)
    if problem.paged is not None:
        check_memory(problem, answer)
    if first.last_token is not None and answer.last_token is not None:
        expect_same(f"{what}, in the state's last tokens", [answer.last_token[1:]], [first.last_token[1:]])


FEW = 2
"""Rows that are tried alone under an interpreter."""


def _judge_alone(problem: Problem, kernel: Kernel, rig: Rig, first: Answer, rows: Iterable[int]) -> None:
    """Rows alone, and last tokens alone: to the bit where the kernel promises it, within the op's class otherwise."""
    assert problem.alone is not None
    for row in rows:
        alone, places = problem.alone(int(row))
        answer = rig.runner(kernel, alone)(alone)
        if kernel.batch_invariant:
            expect_same(f"tokens {places.start} to {places.stop - 1} alone", answer.results, [result[places] for result in first.results])
        else:
            compare(alone, answer, rig.oracle.compute(alone))


def _compare_bits_or_class(what: str, problem: Problem, kernel: Kernel, answer: Answer, first: Answer, expected: Expected) -> None:
    try:
        if kernel.batch_invariant:
            expect_same(what, answer.results, first.results)
        else:
            compare(problem, answer, expected)
    except Failed as reason:
        raise Failed(f"{what}: {reason}") from None


def compare(problem: Problem, answer: Answer, expected: Expected) -> None:
    """Each result within its op's class of the oracle's."""
    if len(answer.results) != len(expected.results):
        raise Failed(f"gave {len(answer.results)} results instead of {len(expected.results)}")
    for place, (found, wanted, dtype) in enumerate(zip(answer.results, expected.results, expected.dtypes, strict=True)):
        reason = _reason(problem, place, found, wanted, dtype, expected)
        if reason is not None:
            raise Failed(f"result {place} {reason}" if len(expected.results) > 1 else f"the result {reason}")
    if expected.last_token is not None and answer.last_token is not None:
        reason = tolerance.exact(answer.last_token[1:], expected.last_token[1:])
        if reason is not None:
            raise Failed(f"the state's last token {reason}")


def _reason(problem: Problem, place: int, found: Array, wanted: Array, dtype: str, expected: Expected) -> str | None:
    if found.dtype != DTYPES[dtype]:
        return f"is {found.dtype.name} instead of {dtype}"
    if wanted.dtype.kind in "iu" or problem.spec.tolerance.kind == "exact":
        return tolerance.exact(found, wanted.astype(DTYPES[dtype]))
    if not wanted.size:
        return None if found.shape == wanted.shape else f"has shape {list(found.shape)} instead of {list(wanted.shape)}"
    kind = problem.spec.tolerance
    magnitude = None if expected.magnitude is None else expected.magnitude[place]
    if kind.kind == "naive_relative" and expected.naive is not None:
        naive = expected.naive[place]
        return tolerance.naive_relative(found, naive, wanted, factor=kind.factor, halves=kind.halves, magnitude=magnitude)
    if kind.kind == "elementwise":
        return tolerance.within(found, wanted, depth=kind.depth, halves=kind.halves, magnitude=magnitude)
    return tolerance.within(found, wanted, depth=SAMPLE_DEPTH, magnitude=1 + np.abs(wanted))


SAMPLE_DEPTH = 64
"""Float32 roundings allowed in the log-probabilities that `sample` tells: of them, and of the sum of at least 1 behind them."""


def check_memory(problem: Problem, answer: Answer) -> None:
    """What the op wrote is what the oracle wrote; every other slot but the null block's kept its bits."""
    assert problem.paged is not None
    arguments, cell, _ = problem.host_arguments()
    held = problem.held(*arguments) if problem.held else {}
    if problem.paged.written.any():
        problem.spec.reference(*arguments)
    for name, array in answer.blocks.items():
        wanted = getattr(cell, name)
        written = problem.paged.written
        for what, mask in (("a slot that was to be written", written), ("a slot that was not its to write", ~written)):
            places = mask.copy()
            places[0] = False
            found, right = (np.ascontiguousarray(values.transpose(0, 2, 1, 3)[places]) for values in (array, wanted))
            if mask is written and name in held:
                reason = _turned(problem, found, right, held[name].transpose(0, 2, 1, 3)[places])
            else:
                reason = tolerance.exact(found, right)
            if reason is not None:
                raise Failed(f"{what} of {name} {reason}")


def _turned(problem: Problem, found: Array, right: Array, magnitude: Array) -> str | None:
    """`right` is rounded to the memory's dtype already: another half ulp."""
    return tolerance.within(found, right.astype(np.float64), depth=problem.spec.tolerance.depth, halves=2, magnitude=magnitude)
