"""Programs of one process found again by what was traced, and the interpreter's callbacks of the host: quicker, and nothing else."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from inferplane.conformance.models import CONTEXT, MODELS, RandomSource, greedy  # noqa: E402
from inferplane.core.loader import LoadOptions, load  # noqa: E402
from inferplane.platforms.contract import Options  # noqa: E402
from inferplane.platforms.families.jax import programs  # noqa: E402
from inferplane.platforms.families.pallas import interpreted_speed  # noqa: E402
from inferplane.platforms.families.pallas.calls import Calls  # noqa: E402
from inferplane.platforms.reference import Reference  # noqa: E402
from inferplane.platforms.tpu import Tpu  # noqa: E402
from jax.experimental import pallas as pl  # noqa: E402

ONES = np.ones(8, np.float32)
Function = Callable[[Any, Any], Any]


@pytest.fixture(autouse=True)
def _no_programs() -> Iterator[None]:
    programs._kept.clear()
    yield
    programs._kept.clear()


def shared(function: Function, place: str = "here") -> Callable[..., Any]:
    return programs.shared(function, place, {})


def scaled(factor: float) -> Function:
    """Not the same object twice, and the same trace for the same factor."""
    return lambda x, state: (x * factor, state + 1)


def shifted(by: int) -> Function:
    """Traces that differ in nothing but the numbers of a constant."""
    row = np.arange(8, dtype=np.float32) + by
    return lambda x, state: (x + jnp.asarray(row), state)


def block_of(place: int) -> Function:
    """A kernel that copies one half of its input; which one, only a map of its grid says."""
    def copy(source: Any, out: Any) -> None:
        out[...] = source[...]

    call = pl.pallas_call(
        copy, grid=(1,), in_specs=[pl.BlockSpec((4,), lambda _: (place,))], out_specs=pl.BlockSpec((4,), lambda _: (0,)),
        out_shape=jax.ShapeDtypeStruct((4,), jnp.float32), interpret=True,
    )
    return lambda x, state: (call(x), state)


@pytest.mark.parametrize(("make", "argument"), [(scaled, 3.0), (shifted, 2), (block_of, 1)], ids=["literal", "constant", "kernel"])
def test_steps_that_are_traced_alike_are_compiled_once(make: Callable[[Any], Function], argument: Any) -> None:
    first, second = (shared(make(argument))(ONES, ONES.copy()) for _ in range(2))
    assert len(programs._kept) == 1
    np.testing.assert_array_equal(first[0], second[0])


@pytest.mark.parametrize(("make", "arguments"), [(scaled, (3.0, 4.0)), (shifted, (2, 5)), (block_of, (0, 1))],
                         ids=["literal", "constant", "kernel's grid"])
def test_steps_that_differ_in_a_number_are_two_programs(make: Callable[[Any], Function], arguments: tuple[Any, Any]) -> None:
    x = np.arange(8, dtype=np.float32)
    found = [np.asarray(shared(make(argument))(x, ONES.copy())[0]) for argument in arguments]
    assert len(programs._kept) == 2
    assert (found[0] != found[1]).any()


def test_shapes_devices_and_dtypes_are_part_of_a_program() -> None:
    run = shared(scaled(2.0))
    for x in (ONES, ONES[:4], ONES.astype(np.int32)):
        run(x, ONES.copy())
    shared(scaled(2.0), "elsewhere")(ONES, ONES.copy())
    assert len(programs._kept) == 4


def test_programs_that_were_not_asked_for_longest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST", 2)
    for factor in (1.0, 2.0, 1.0, 3.0):
        shared(scaled(factor))(ONES, ONES.copy())
    kept = list(programs._kept)
    shared(scaled(1.0))(ONES, ONES.copy())
    assert set(programs._kept) == set(kept), "1 was asked for again before 3 came, so that 2 went"


def test_models_of_one_shape_share_their_steps_and_not_their_weights() -> None:
    prompt, counts = range(3, 20), []
    for seed in (0, 1):
        source, options = RandomSource(MODELS["full"], seed), LoadOptions(dtype="float32", max_model_len=CONTEXT)
        platforms = Tpu(Options("interpreted")), Reference(Options())
        ours, wanted = (greedy(load(source, platform, options), prompt, 4) for platform in platforms)
        np.testing.assert_array_equal(ours, wanted)
        counts.append(len(programs._kept))
    assert counts == [2, 2], "a prefill and a decode"


def test_threads_do_not_disturb_each_other_under_the_interpreter() -> None:
    """Its memory is the process's: kernels that overlap would be told that a block was visited twice, or find another's."""
    def copy(source: Any, out: Any) -> None:
        out[...] = source[...] * 2

    call = pl.pallas_call(copy, grid=(8,), in_specs=[pl.BlockSpec((1, 8), lambda row: (row, 0))],
                          out_specs=pl.BlockSpec((1, 8), lambda row: (row, 0)), out_shape=jax.ShapeDtypeStruct((8, 8), jnp.float32),
                          interpret=Calls(interpret=True)._interpreter())
    run = shared(lambda x, state: (call(x), state))

    def steps(start: int) -> None:
        for step in range(40):
            x = np.full((8, 8), start + step, np.float32)
            np.testing.assert_array_equal(run(x, ONES.copy())[0], 2 * x)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(steps, 1000 * place) for place in range(3)]:
            done.result()


def test_callbacks_of_others_get_what_jax_gives() -> None:
    interpreted_speed.quicken()
    seen: list[type] = []

    def double(x: Any) -> Any:
        seen.append(type(x))
        return np.asarray(x) * 2

    call = partial(jax.experimental.io_callback, double, jax.ShapeDtypeStruct((8,), np.float32))
    np.testing.assert_array_equal(jax.jit(call)(ONES), 2 * ONES)
    assert issubclass(seen[0], jax.Array)
