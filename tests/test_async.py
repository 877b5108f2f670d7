"""AsyncEngine: many iterations at once, cancelled tasks, several event loops, and errors that reach their own caller only."""
from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine, SamplingParams
from inferplane.errors import ConfigError, EngineError, RequestError

PATIENCE_SECONDS = 60.0
DRAWN = SamplingParams(temperature=1.0, seed=4, max_tokens=20)
LONG = replace(DRAWN, max_tokens=80)


@pytest.fixture(scope="module")
def engine(small_models: ModuleType) -> Iterator[AsyncEngine]:
    made = small_models.random_llm("full-and-sliding", "cpu", kind=AsyncEngine)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_leaks(engine: AsyncEngine) -> Iterator[None]:
    yield
    stats = engine.stats()
    assert (stats.running, stats.waiting, set(stats.kv.held_blocks)) == (0, 0, {0})


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE_SECONDS))


async def answer(engine: AsyncEngine, prompt: Any, params: SamplingParams = DRAWN, **named: Any) -> tuple[int, ...]:
    """The tokens of the first sample, after checking that they only ever grew."""
    tokens: tuple[int, ...] = ()
    async for output in engine.generate(prompt, params, **named):
        assert output.outputs[0].token_ids[: len(tokens)] == tokens
        tokens = output.outputs[0].token_ids
    assert output.finished
    return tokens


def test_many_iterations_at_once_give_what_each_gives_alone(engine: AsyncEngine) -> None:
    prompts = [list(range(3, 4 + i)) for i in range(24)]

    async def alone() -> list[tuple[int, ...]]:
        return [await answer(engine, prompt) for prompt in prompts]

    async def together() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(answer(engine, prompt) for prompt in prompts))

    assert run(together()) == run(alone())


def test_each_growth_arrives_with_its_token(engine: AsyncEngine) -> None:
    async def main() -> list[int]:
        return [len(output.outputs[0].token_ids) async for output in engine.generate([3, 4], DRAWN)]

    assert run(main()) == list(range(1, 21))


@pytest.mark.parametrize("after", [0, 1, 5], ids=lambda after: f"after-{after}")
def test_cancelling_a_task_aborts_its_request_and_frees_its_blocks(engine: AsyncEngine, after: int) -> None:
    async def main() -> None:
        arrived, expected = asyncio.Event(), await answer(engine, [9, 9], LONG)

        async def iterate() -> None:
            seen = 0
            async for _ in engine.generate([5] * 10, LONG):
                seen += 1
                if seen == after:
                    arrived.set()

        neighbour = asyncio.create_task(answer(engine, [9, 9], LONG))
        task = asyncio.create_task(iterate())
        if after:
            await arrived.wait()
        else:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await neighbour == expected

    run(main())


def test_leaving_the_loop_aborts(engine: AsyncEngine) -> None:
    async def main() -> None:
        async with aclosing(engine.generate([5] * 10, LONG)) as outputs:
            async for _ in outputs:
                break

    before = engine.stats().step_tokens
    run(main())
    assert engine.stats().step_tokens - before < 60


def test_an_abort_by_name_ends_the_iteration(engine: AsyncEngine) -> None:
    async def main() -> str | None:
        reason = None
        async for output in engine.generate([5] * 10, LONG, "by-name"):
            await engine.abort("by-name")
            reason = output.outputs[0].finish_reason
        return reason

    assert run(main()) == "abort"


def test_two_event_loops_share_an_engine(engine: AsyncEngine) -> None:
    expected = run(answer(engine, [7, 8], LONG))

    async def several() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(answer(engine, [7, 8], LONG) for _ in range(4)))

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: run(several()), range(2), timeout=PATIENCE_SECONDS))
    assert answers == [[expected] * 4] * 2


def test_a_loop_that_was_closed_disturbs_nobody(engine: AsyncEngine) -> None:
    loop = asyncio.new_event_loop()
    outputs = engine.generate([5] * 10, LONG)
    loop.run_until_complete(anext(outputs))
    loop.close()
    assert len(run(answer(engine, [3]))) == 20
    engine.engine.abort("nobody")
    end = time.monotonic() + PATIENCE_SECONDS
    while engine.stats().running and time.monotonic() < end:
        time.sleep(0.01)


WRONG = {
    "empty": ([], "text or at least one token id"), "beyond-the-vocabulary": ([500], "vocabulary ends at 96"),
    "too-long": ([3] * 96, "context is 96"), "text": ("text", "no tokenizer"),
}


@pytest.mark.parametrize(("prompt", "match"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_reaches_its_own_caller_only(engine: AsyncEngine, prompt: Any, match: str) -> None:
    async def main() -> None:
        wrong, right = await asyncio.gather(answer(engine, prompt), answer(engine, [3]), return_exceptions=True)
        assert isinstance(wrong, RequestError) and match in str(wrong)
        assert len(right) == 20

    run(main())


def test_a_name_that_is_running_is_refused_and_the_first_goes_on(engine: AsyncEngine) -> None:
    async def main() -> None:
        found = await asyncio.gather(*(answer(engine, [3], LONG, request_id="twin") for _ in range(2)), return_exceptions=True)
        assert {type(one) for one in found} == {RequestError, tuple}
        assert next(one for one in found if isinstance(one, tuple)) == await answer(engine, [3], LONG)

    run(main())


def test_closing_ends_every_iteration_with_an_error(small_models: ModuleType) -> None:
    async def main() -> None:
        async with small_models.random_llm("full", "cpu", kind=AsyncEngine) as engine:
            tasks = [asyncio.create_task(answer(engine, [3 + i], LONG)) for i in range(6)]
            async for _ in engine.generate([2], LONG):
                break
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, EngineError) and "it was closed" in str(found)
        with pytest.raises(EngineError, match="the engine is closed"):
            await answer(engine, [3])
        await engine.abort("whatever")

    before = threading.active_count()
    run(main())
    assert threading.active_count() <= before


def test_a_setting_that_is_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'max_num_seqs'"):
        AsyncEngine(max_num_sequs=4)


def test_tenants_share_by_the_fair_policy(small_models: ModuleType) -> None:
    ended: list[str] = []

    async def ask(engine: AsyncEngine, name: str, tenant: str) -> None:
        await answer(engine, [3, 4], DRAWN, request_id=name, tenant=tenant)
        ended.append(tenant)

    async def main() -> None:
        async with small_models.random_llm("full", "cpu", kind=AsyncEngine, max_num_seqs=1, scheduling_policy="fair") as engine:
            tenants = ["greedy"] * 6 + ["modest"] * 2
            await asyncio.gather(*(ask(engine, f"{tenant}-{i}", tenant) for i, tenant in enumerate(tenants)))

    run(main())
    assert ended.index("modest") < 4 and ended[-2:] == ["greedy", "greedy"], "who asks for less does not wait behind who asks for more"


def test_a_task_that_was_refused_an_id_does_not_end_the_request_that_has_it(engine: AsyncEngine) -> None:
    async def first() -> str | None:
        async for output in engine.generate([5, 6, 7], SamplingParams(max_tokens=40, ignore_eos=True), "same"):
            last = output.outputs[0].finish_reason
        return last

    async def second() -> None:
        async for _ in engine.generate([8, 9], SamplingParams(max_tokens=40, ignore_eos=True), "same"):
            pass

    async def both() -> str | None:
        running = asyncio.create_task(first())
        await asyncio.sleep(0)
        refused = asyncio.create_task(second())
        await asyncio.sleep(0)
        refused.cancel()
        await asyncio.gather(refused, return_exceptions=True)
        return await running

    assert asyncio.run(both()) == "length"
