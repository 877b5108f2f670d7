"""Grade `compiled`: what an op's kernels become for a chip that is not there. A case passes where all of them fit and none spills."""
from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from ..core.localize import Mesh, local_spec
from ..errors import ConfigError
from ..ops import DTYPES, Kernel, StateGroup
from ..platforms import registry
from ..platforms.contract import Compiler, KernelCode
from .case import Case, Outcome, Params, Verdict, outcome_of
from .cases.make import Judged
from .judge import supporting
from .problem import Given, Problem
from .rig import NO_GROUP, Rig, idle
from .runner import Result, Worker, answer

GRADE = "compiled"
POOL_BYTES = 2**32
"""Of each array of KV memory, as serving has them: compilers choose other loads where offsets need more than 32 bits."""


def targets_of(platform: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Those that a platform compiles for, or those of them that were asked for. Opens each compiler once.

    Raises `ConfigError` where there is none or one is unknown, `PlatformUnavailable` where a compiler is not installed.
    """
    found = registry.loaded(platform)
    if platform != found.name:
        raise ConfigError(f"--grade {GRADE} takes a platform without options, found {platform!r}; "
                          f"write --platform {found.name}, and choose chips with --target")
    if not found.targets:
        able = ", ".join(one.name for one in registry.listing() if one.targets) or "none is installed"
        raise ConfigError(f"platform {platform!r} compiles for no chip that is not there, so it has no grade {GRADE}; "
                          f"platforms that do: {able}")
    targets = tuple(dict.fromkeys(asked)) or found.targets
    for target in targets:
        found.compiler(target)
    return targets


def run(platform: str, targets: Sequence[str], cases: Sequence[Case], codes: dict[str, KernelCode], *, timeout_seconds: float = 600.0,
        jobs: int = 1) -> Iterator[Result]:
    """Every case on every target; `jobs` targets at a time, each in a worker process that is replaced when it hangs or dies.

    codes: filled with what kernels became, by the names that results give.
    """
    done: SimpleQueue[Result | None] = SimpleQueue()

    def one_target(target: str) -> None:
        worker = Worker(_work, platform, target)
        try:
            for case in cases:
                started = time.perf_counter()
                outcome, _ = worker.run(case, timeout_seconds)
                codes.update((code_id(code), code) for code in outcome.codes)
                done.put(_result(case, target, outcome, time.perf_counter() - started))
        finally:
            worker.stop()
            done.put(None)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        ends = [pool.submit(one_target, target) for target in targets]
        open_targets = len(targets)
        while open_targets:
            told = done.get()
            if told is None:
                open_targets -= 1
            else:
                yield told
        for end in ends:
            end.result()


def code_id(code: KernelCode) -> str:
    """The name of its line in kernels.jsonl: the same for the same kernel in the same configuration."""
    return hashlib.sha256("\n".join((code.kernel, code.target, code.arguments, code.options)).encode()).hexdigest()[:16]


def _result(case: Case, target: str, outcome: Outcome, seconds: float) -> Result:
    codes = tuple(dict.fromkeys(map(code_id, outcome.codes)))
    return Result(case.id, case.feature, case.level, outcome.verdict, GRADE, outcome.detail, outcome.kernels, round(seconds, 4), target,
                  codes)


def _work(platform: str, target: str, pipe: Connection) -> None:
    compiler = registry.loaded(platform).compiler(target)
    rig = Rig(compiler.platform)
    answer(pipe, GRADE, lambda case: compile_case(case, rig, compiler))


def compile_case(case: Case, rig: Rig, compiler: Compiler) -> Outcome:
    """Never raises, except for an interrupt."""
    run = case.family.run
    assert isinstance(run, Judged)
    return outcome_of(lambda: _compiled(run.problem(Params(case.address.values), case.address), rig, compiler))


def _compiled(problem: Problem, rig: Rig, compiler: Compiler) -> Outcome:
    """All kernels that take the problem and have code of the platform's own."""
    takers = supporting(problem, rig)
    own = {(kernel.op, kernel.name) for kernel in compiler.kernels}
    compiler.made()
    for kernel in takers:
        if (kernel.op, kernel.name) in own:
            launch(rig, kernel, problem)
    names, codes = tuple(kernel.name for kernel in takers), tuple(dict.fromkeys(compiler.made()))
    if not codes:
        return Outcome(Verdict.UNCOMPILED, f"{', '.join(names)}: no kernel of the platform's own starts", names)
    if wrong := [code for code in codes if code.reason]:
        return Outcome(Verdict.FAIL, "; ".join(map(told, wrong)), names, codes)
    return Outcome(Verdict.PASS, "", names, codes)


def told(code: KernelCode) -> str:
    """What is wrong with one, in a line."""
    return f"{code.kernel} on {code.target} ({code.registers} registers; {code.arguments}; {code.options}): {code.reason}"


def launch(rig: Rig, kernel: Kernel, problem: Problem) -> None:
    """What a step with this kernel starts, and what it takes to fill, copy and read its blocks."""
    platform, spec, packed = rig.platform, local_spec(problem.spec, Mesh.single()), problem.packed or idle()
    weight = rig.prepare(kernel, problem) if problem.weight else ()
    arrays = tuple(map(platform.put, problem.arrays))

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        given = {Given.WEIGHT: weights["weight"], Given.BATCH: batch, Given.SAMPLING: sampling, Given.CELL: state[0], Given.STATE: state}
        kernel.run(spec, *problem.fill(given, weights["arrays"]))
        return ()

    handles = {"arrays": arrays, "weight": weight}
    platform.submit(platform.compile(step, packed.shape), handles, _state(rig, problem), packed).result()


def _state(rig: Rig, problem: Problem) -> Any:
    """The problem's memory, in a pool of serving's size."""
    paged = problem.paged
    group, count = (NO_GROUP, 2) if paged is None else (paged.group, _blocks_of(paged.group))
    state = rig.platform.allocate([group], [count], slots=1 if problem.last_token is None else len(problem.last_token) - 1)
    if problem.last_token is not None:
        state.last_token = rig.platform.put(problem.last_token.copy())
    if paged is not None:
        rig.write(state, paged, range(len(paged.live)))
        rig.platform.copy_blocks(state, 0, [0], [1])
        rig.platform.read_blocks(state, 0, [0])
    return state


def _blocks_of(group: StateGroup) -> int:
    least = min(one.heads * group.block_tokens * one.dim * DTYPES[one.dtype].itemsize for one in group.arrays.values())
    return math.ceil(POOL_BYTES / least)
