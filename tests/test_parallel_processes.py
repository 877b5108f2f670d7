"""The processes of a model on several devices: one engine for a person, and an end for all of them whatever happens to one."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from inferplane import LLM, SamplingParams
from inferplane.cli import main
from inferplane.core.transfer import export_prefix, import_prefix
from inferplane.errors import ConfigError, EngineError, InferplaneError

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
WILD = SamplingParams(temperature=1.2, top_p=0.9, seed=7, max_tokens=24, logprobs=3, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)
PROMPTS = ["Once upon a time", "The capital of France is", "one two three"]
PATIENCE_SECONDS = 10.0
"""For what must happen within some seconds."""
MARK = "inferplane-rank-"

pytestmark = pytest.mark.usefixtures("devices")


def engine(platform: str = "torch-cpu", ways: int = 2, **settings: Any) -> LLM:
    return LLM(platform=platform, dtype="float32", tensor_parallel=ways, max_num_seqs=4, threads=None, **settings)


def workers(parent: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(parent).children() if any(MARK in word for word in child.cmdline())]


def gone(processes: list[psutil.Process]) -> bool:
    """Within patience. A zombie that its parent has not reaped yet is no process any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def alone(devices: ModuleType) -> Iterator[LLM]:
    with engine(ways=1) as made:
        yield made


def test_two_processes_answer_as_one_does_and_leave_nothing_behind(alone: LLM) -> None:
    with engine() as llm:
        [worker] = workers(os.getpid())
        for params in (GREEDY, WILD):
            ours, theirs = ([answer.outputs[0] for answer in one.generate(PROMPTS, params)] for one in (alone, llm))
            assert [one.token_ids for one in theirs] == [one.token_ids for one in ours]
        folder = llm.engine.runner.peers.world.meeting  # type: ignore[union-attr]
        [stream] = alone.generate(PROMPTS[0], GREEDY)
        assert "".join(output.outputs[0].delta for output in llm.stream(PROMPTS[0], GREEDY)) == stream.outputs[0].text
    assert gone([worker])
    assert not folder.exists()


def killed(llm: LLM, act: Callable[[], Any]) -> tuple[str, float]:
    """What `act` raised after the worker was killed, and how many seconds after."""
    [worker] = workers(os.getpid())
    at: list[float] = []

    def kill() -> None:
        at.append(time.monotonic())
        worker.kill()

    threading.Timer(0.3, kill).start()
    with pytest.raises(EngineError) as raised:
        act()
    return str(raised.value), time.monotonic() - at[0]


def test_a_worker_that_is_killed_in_a_run_ends_its_requests_and_the_engine_with_its_name() -> None:
    with engine() as llm:
        [worker] = workers(os.getpid())
        told, seconds = killed(llm, lambda: llm.generate(PROMPTS, ENDLESS))
        assert f"the worker of rank 1 of 2 (process {worker.pid}) was killed by SIGKILL" in told
        assert seconds < PATIENCE_SECONDS
        with pytest.raises(EngineError, match=r"the engine is closed: the worker of rank 1 .*; make a new one"):
            llm.generate(PROMPTS, GREEDY)
    assert gone([worker])


def test_a_worker_that_is_killed_between_two_requests_is_noticed_then() -> None:
    with engine() as llm:
        [worker] = workers(os.getpid())
        worker.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while llm.engine._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(EngineError, match="the engine is closed: the worker of rank 1 of 2"):
            llm.generate(PROMPTS, GREEDY)


def test_of_four_devices_the_one_that_was_killed_is_named_and_not_those_that_miss_it() -> None:
    with engine(ways=4) as llm:
        started = workers(os.getpid())
        last = llm.engine.runner.peers._workers[-1]  # type: ignore[union-attr]
        threading.Timer(0.3, last.process.kill).start()
        with pytest.raises(EngineError, match="the worker of rank 3 of 4 .* was killed by SIGKILL"):
            llm.generate(PROMPTS, ENDLESS)
    assert gone(started)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_that_fails_on_any_device_ends_the_engine(rank: int, capfd: pytest.CaptureFixture[str]) -> None:
    with engine(f"torch-cpu:breaks={rank}") as llm:
        started = workers(os.getpid())
        with pytest.raises(EngineError, match=r"ValueError: this device is broken"):
            llm.generate(PROMPTS, GREEDY)
        with pytest.raises(EngineError, match=f"the engine is closed: {'rank 0 of 2 failed' if rank == 0 else 'ValueError'}"):
            llm.generate(PROMPTS, GREEDY)
    assert gone(started)
    assert ("Traceback" in capfd.readouterr().err) == (rank == 1), "what another process raised is shown where it was"


def test_prefixes_go_from_one_device_to_two_and_back(alone: LLM) -> None:
    prompt = list(range(5, 105))
    [wanted] = alone.generate(prompt, GREEDY)
    with engine() as llm:
        assert import_prefix(llm.engine, prompt, export_prefix(alone.engine, prompt)) == 96
        [answer] = llm.generate(prompt, GREEDY)
        assert answer.metrics.kv is not None and answer.metrics.kv.hit_tokens == 96
        back = export_prefix(llm.engine, prompt)
    assert answer.outputs[0].token_ids == wanted.outputs[0].token_ids
    assert back == export_prefix(alone.engine, prompt)


@pytest.mark.parametrize(("platform", "kind", "told"), [
    ("torch-cpu:absent=1", ConfigError, r"there is no device 1 here. Use fewer. \(Told by the worker of rank 1 of 2"),
    ("torch-cpu:dies=1", EngineError, "the worker of rank 1 of 2 .* ended with exit code 3"),
], ids=["an-error", "an-exit"])
def test_a_worker_that_cannot_start_says_why(platform: str, kind: type[InferplaneError], told: str) -> None:
    with pytest.raises(kind, match=told):
        engine(platform)
    assert gone(workers(os.getpid()))


def test_weights_from_a_class_that_no_other_process_can_import_are_refused(small_models: ModuleType) -> None:
    class Local(small_models.RandomSource):  # type: ignore[misc,name-defined]
        pass

    with pytest.raises(ConfigError, match="tensor_parallel sends the platform and the source of the weights to worker processes"):
        engine(source=Local(small_models.MODELS["full"]))


@pytest.mark.parametrize(("settings", "told"), [
    ({"ways": 3}, "tensor_parallel 3 was asked for, and this model's heads of size 4 do not divide 3 ways; use one of 1, 2, 4"),
    ({"platform": "cpu"}, "tensor_parallel 2 was asked for, and a model on cpu runs on one device. Leave it out, or take a platform"),
    ({"ways": 0}, "setting tensor_parallel must be an integer of at least 1; found 0"),
], ids=["ways", "platform", "zero"])
def test_what_cannot_be_is_refused_before_a_process_is_started(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        engine(**settings)
    assert workers(os.getpid()) == []


def test_the_table_of_kernels_says_what_devices_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["platforms", "--json", "--platform", "torch-cpu", "--model", "tiny", "--dtype", "float32", "--tensor-parallel", "2"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["devices"] for row in told["kernels"]} == {"", "sum over 2", "gather over 2"}
    assert {row["name"]: bool(row["parallel"]) for row in told["platforms"]}.items() >= {"torch-cpu": True, "cpu": False}.items()


# A process of its own, as a person starts it


@pytest.fixture
def command(devices: ModuleType) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """command(word, ...): `inferplane generate` on two devices."""
    started = []
    paths = os.pathsep.join([str(Path(devices.__file__ or "").parent), *(path for path in sys.path if path)])

    def run(*words: str) -> subprocess.Popen[str]:
        begin = [sys.executable, "-m", "inferplane.cli", "generate", "--platform", "torch-cpu", "--dtype", "float32"]
        process = subprocess.Popen(
            [*begin, "--tensor-parallel", "2", "--temperature", "0", *words], text=True, env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def serving(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its workers, once the answer has begun."""
    assert process.stdout is not None
    assert process.stdout.read(1), process.stderr.read() if process.stderr else ""
    found = workers(process.pid)
    assert len(found) == 1
    return found


def test_the_command_prints_the_answer_of_one_device(alone: LLM, command: Callable[..., subprocess.Popen[str]]) -> None:
    said, told = (process := command("--raw", "--max-tokens", "12", PROMPTS[0])).communicate(timeout=120)
    ours = alone.generate(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=12))[0].outputs[0].text
    assert (said.strip(), process.returncode, told) == (ours.strip(), 0, "")


@pytest.mark.parametrize(("end", "code"), [
    (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM),
], ids=["interrupt", "kill", "terminate"])
def test_no_worker_outlives_the_command(end: signal.Signals, code: int, command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command("--raw", "--max-tokens", "900", PROMPTS[0])
    found = serving(process)
    os.killpg(process.pid, end)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in told
    assert gone(found)
