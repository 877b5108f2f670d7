"""KV memory of more than 2^31 elements: blocks behind that are written and read by 64-bit offsets, or they are other blocks."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...ops import DTYPES, Attention, Dim, Kernel, Spec, StateGroup, WriteKV
from .. import naive
from ..address import Address
from ..case import Failed, Family, Params, Unsupported
from ..judge import check_memory, compare
from ..problem import Given, Problem
from ..rig import Answer, Rig
from .make import values
from .ragged import ragged

HEADS, KEY_DIM, VALUE_DIM, BLOCK = 8, 128, 32, 16
ELEMENTS = {"2p31": 2**31, "2p32": 2**32}
SHARE = 0.75
"""Of the free memory, for KV blocks most of which are never touched."""
ROWS = [(1, 40), (3, 17), (5, 0)]


def _problem(params: Params, random: np.random.Generator) -> Problem:
    """A small problem; where its blocks really lie is the run's affair."""
    dtype = params["dtype"]
    made = ragged(random, ROWS, kv_heads=HEADS, key_dim=KEY_DIM, value_dim=VALUE_DIM, block_tokens=BLOCK, dtype=dtype)
    tokens = sum(count for count, _ in ROWS)
    if params["op"] == "write":
        write = WriteKV(kv_heads=Dim(HEADS, "kv_heads"), key_dim=KEY_DIM, value_dim=VALUE_DIM, dtype=dtype)
        k, v = (values(random, (tokens, HEADS, dim), dtype) for dim in (KEY_DIM, VALUE_DIM))
        return Problem(write, (k, v, Given.CELL, Given.BATCH), packed=made.packed, paged=made.paged)
    spec = Attention(heads=Dim(HEADS, "heads"), kv_heads=Dim(HEADS, "kv_heads"), key_dim=KEY_DIM, value_dim=VALUE_DIM,
                     scale=KEY_DIM**-0.5, dtype=dtype)
    paged = replace(made.paged, written=np.zeros_like(made.paged.written))
    q = values(random, (tokens, HEADS, KEY_DIM), dtype)
    return Problem(spec, (q, Given.CELL, Given.BATCH), packed=made.packed, paged=paged, naive=naive.attention(spec))


def _run(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    problem = _problem(params, address.random())
    kernels, first = rig.supporting(problem.spec), ELEMENTS[params["behind"]] // (HEADS * KEY_DIM * BLOCK)
    assert problem.paged is not None
    _check_room(rig, problem.paged.group, first + len(problem.paged.live))
    expected = rig.oracle.expected(problem, address)
    for kernel in kernels:
        try:
            answer = _far_answer(problem, kernel, rig, first)
            compare(problem, answer, expected)
            check_memory(problem, answer)
        except Failed as reason:
            raise Failed(f"{kernel.name}: behind {ELEMENTS[params['behind']]:,} elements: {reason}") from None
    return tuple(kernel.name for kernel in kernels)


def _check_room(rig: Rig, group: StateGroup, blocks: int) -> None:
    if group.block_tokens not in rig.platform.capabilities.block_tokens:
        raise Unsupported(f"capabilities: blocks of {', '.join(map(str, rig.platform.capabilities.block_tokens))} tokens")
    needed = blocks * group.block_bytes({name: dtype.itemsize for name, dtype in DTYPES.items()})
    free = rig.platform.memory().free
    if needed > SHARE * free:
        raise Unsupported(f"memory: {needed / 2**30:.1f} GiB of KV blocks are more than {SHARE:g} of the {free / 2**30:.1f} GiB free")


def _far_answer(problem: Problem, kernel: Kernel, rig: Rig, first: int) -> Answer:
    """Block b of the problem lies at first + b; the blocks that a shorter offset would find hold NaN."""
    assert problem.paged is not None
    count = len(problem.paged.live)
    places = [0, *range(first + 1, first + count)]
    moved = rig.padded(problem.renumbered(np.asarray(places)))
    assert moved.packed is not None
    state = rig.platform.allocate([problem.paged.group], [first + count], slots=len(ROWS))
    rig.write(state, problem.paged, places)
    nothing = {name: np.full_like(array, np.nan) for name, array in problem.paged.arrays.items()}
    rig.write(state, replace(problem.paged, arrays=nothing), range(count))
    spec: Spec = problem.spec
    arrays = tuple(rig.platform.put(array) for array in moved.arrays)

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        result = kernel.run(spec, *moved.fill({Given.CELL: state[0], Given.BATCH: batch}, weights))
        return () if result is None else (result,)

    pending = rig.platform.submit(rig.platform.compile(step, moved.packed.shape), arrays, state, moved.packed)
    results = rig.cut(problem, [np.array(part) for part in pending.result()])
    for name, array in rig.read(state, range(1, count)).items():
        if not np.isnan(array.astype(np.float64)).all():
            raise Failed(f"a block of {name} that a shorter offset finds was written")
    return Answer(results, rig.read(state, places))


FAMILIES = [Family("kv.far", 2, {"op": ("write", "attention"), "dtype": ("bfloat16", "float16"), "behind": tuple(ELEMENTS)}, _run)]
