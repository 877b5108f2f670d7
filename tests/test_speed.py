"""Speed: what a measurement counts, that a wrong one is none, and that it runs only when it is asked for."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from inferplane.bench.ops import works
from inferplane.cli import main
from inferplane.conformance.case import Verdict
from inferplane.conformance.cases import all_cases, find, quick_cases, speed_cases
from inferplane.conformance.limits import Limits
from inferplane.conformance.problem import Given, Problem
from inferplane.conformance.rig import Rig
from inferplane.conformance.runner import run_here
from inferplane.conformance.select import Selection
from inferplane.conformance.speed import Work, measure
from inferplane.ops import BatchShape, Dim, Kernel, Linear, RmsNorm, always, empty
from inferplane.platforms.contract import Capabilities, Options
from inferplane.platforms.reference import Reference


class Limited(Reference):
    """Its limits are far above it."""

    capabilities = Capabilities(dtypes=("float32", "bfloat16"), grade="device")

    def measure_limits(self) -> dict[str, float]:
        return {"read_bytes_per_second": 1e12, "float32_flops": 1e14}


def small(tokens: int = 3) -> Work:
    packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
    batch.sample[0] = tokens - 1
    x, weight = np.ones((tokens, 64), np.float32), np.full((32, 64), 0.5, np.float32)
    spec = Linear(input=Dim(64), outputs=(Dim(32),), dtype="float32")
    return Work(Problem(spec, (x, Given.WEIGHT, Given.BATCH), weight=(weight,), packed=packed))


@pytest.fixture
def limited() -> Iterator[Rig]:
    made = Rig(Limited(Options()))
    yield made
    made.platform.close()


LIMITS = Limits("test", 1e12, {"float32": 1e13})


def test_a_measurement_counts_what_must_be_moved_and_multiplied(limited: Rig) -> None:
    found = measure(limited, small(), LIMITS)
    assert (found.bytes, found.flops) == (4 * (3 * 64 + 32 * 64 + 3 * 32), 2 * 3 * 64 * 32)
    assert found.least_seconds == pytest.approx(found.bytes / 1e12) and found.by == "memory"
    assert found.of_limit is not None and 0 < found.of_limit < 1 and f"{found.of_limit:.2f} of the limit by memory" in str(found)
    assert measure(limited, small(), Limits("none")).of_limit is None


@pytest.mark.parametrize("tokens", [3, 9000], ids=["whole", "one row"])
def test_a_timed_run_that_is_wrong_is_no_measurement(tokens: int, limited: Rig) -> None:
    """Large results stay on the device, and one row is looked at."""
    assert measure(limited, small(tokens), LIMITS).seconds > 0

    def run(spec: Any, x: Any, weight: Any, batch: Any) -> Any:
        made = (x @ weight[0].T).astype(np.float32)
        made[-1] += 1e-3
        return made

    limited.kernels.insert(0, Kernel("linear", "fast.wrong", always, run))
    with pytest.raises(Exception, match=r"fast\.wrong: in layer 0 of a timed step, the result outside its bound"):
        measure(limited, small(tokens), LIMITS)


def test_speed_runs_only_when_asked_for() -> None:
    speed = {case.id for case in speed_cases()}
    assert len(speed) == 12 and {find(case).level for case in speed} == {5}
    assert not speed & {case.id for case in (*all_cases(), *quick_cases())}
    assert {case.id for case in Selection(queries=("roofline",)).cases()} == speed
    assert not speed & {case.id for case in Selection(queries=("*",)).cases()}


def test_speed_fails_nothing_and_stands_in_the_words_of_a_pass(limited: Rig) -> None:
    [result] = run_here(limited, [find("roofline.linear:m=1;model=qwen-0.5b;layer=down;dtype=bfloat16")], {})
    assert result.verdict is Verdict.PASS and result.level == 5
    assert "of the limit by memory; " in result.detail and "GB/s" in result.detail


def test_bench_ops_measures_each_kind_and_says_what_is_wrong_or_refused(monkeypatch: pytest.MonkeyPatch,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("inferplane.bench.ops.works", lambda: {
        "linear small": lambda dtype, random: small(),
        "rms_norm small": lambda dtype, random: Work(
            Problem(RmsNorm(size=8, epsilon=1e-5, dtype="int8"), (np.ones((2, 8), np.int8), Given.WEIGHT), weight=(np.ones(8, np.int8),))),
    })
    assert main(["bench", "ops", "--platform", "cpu", "--op", "linear", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"format", "kind", "date", "machine", "versions", "platform", "dtype", "limits", "results", "peak_bytes"}
    [row] = record["results"]
    assert row["work"] == "linear small" and row["refused"] is row["wrong"] is None and row["seconds"] > 0
    assert main(["bench", "ops", "--platform", "cpu", "--op", "linear"]) == 0
    assert "linear: native.linear" in capsys.readouterr().out or row["kernel"] == "numpy.reference"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--op", "linaer"], "op 'linaer' is not measured. Did you mean 'linear'?"), (["--dtype", "int3"], "dtype 'int3' is not one"),
])
def test_bench_ops_refuses_what_it_does_not_know(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", "--platform", "reference", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_bench_ops_has_every_shape_that_is_promised() -> None:
    names = list(works())
    assert {name.split()[0] for name in names} == {
        "linear", "attention", "write_kv", "rms_norm", "rope", "gated_activation", "embedding", "sample"}
    for tokens in (1, 16, 48, 512):
        assert sum(name.startswith("linear") and name.endswith(f" m={tokens}") for name in names) == 8
