"""Tuning of launch configurations: what wins is written where kernels look, on a device that only pretends to take time."""
from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inferplane.cli import main
from inferplane.ops import Dim, GatedActivation, GatedLinear, Linear, Moe, Scheme
from inferplane.platforms.contract import Options

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from inferplane.platforms.cuda import Cuda  # noqa: E402
from inferplane.platforms.families.triton import tune as family  # noqa: E402
from inferplane.platforms.families.triton.launches import TABLE, Launch  # noqa: E402
from inferplane.platforms.families.triton.target import TARGETS  # noqa: E402

WIDE = Launch({"BLOCK_ROWS": 16, "BLOCK_OUTPUTS": 64, "BLOCK_INPUTS": 32, "BAND": 4}, {"num_warps": 2, "num_stages": 5})
BAD = Launch({"BLOCK_ROWS": 16, "BLOCK_OUTPUTS": 48, "BLOCK_INPUTS": 32, "BAND": 4}, {"num_warps": 2})
LINEAR = Linear(input=Dim(64), outputs=(Dim(40),), dtype="bfloat16")
QUANTIZED = Linear(input=Dim(64), outputs=(Dim(40), Dim(8)), dtype="bfloat16", bias=True, scheme=Scheme.parse("int4:g32:zeros:a8g32"))
GATED = GatedLinear(linear=Linear(input=Dim(64), outputs=(Dim(8), Dim(8)), dtype="bfloat16"),
                    activation=GatedActivation(kind="silu", dtype="bfloat16"))
MOE = Moe(experts=Dim(4, "experts"), embed=16, mlp=Dim(24, "mlp"), top_k=2, activation="silu", dtype="bfloat16")


def device() -> Any:
    return Cuda(Options("interpreted")).runs_on


def tuned(*work: Any, seconds: Callable[[], float] = lambda: 1.0, candidates: Any = lambda kernel, tokens: iter([BAD, WIDE]),
          on: Any = None) -> Any:
    told: list[str] = []

    def measure(call: Callable[[], Any]) -> float:
        call()
        return seconds()

    return family.tune(on or device(), list(work), told.append, measure, candidates), told


def falling() -> Callable[[], float]:
    """Each measurement is faster than the one before."""
    times = iter(range(100, 0, -1))
    return lambda: float(next(times))


@pytest.mark.parametrize(("spec", "tokens", "kernel"), [(LINEAR, 3, "linear"), (QUANTIZED, 3, "quantized_linear")], ids=["floats", "codes"])
def test_the_fastest_configuration_wins_and_one_that_does_not_compile_never_does(spec: Any, tokens: int, kernel: str) -> None:
    [one], [line] = tuned((spec, tokens), seconds=falling())
    assert (one.kernel, one.target, one.key["rows"]) == (kernel, "sm_90", 3)
    assert (one.meta["BLOCK_OUTPUTS"], one.meta["SPLITS"], dict(one.options)) == (64, family.SHARES[-1], dict(WIDE.options))
    assert one.tried == 2 + len(family.SHARES)
    assert one.microseconds < one.microseconds_before and f"{kernel} " in line


def test_what_is_in_use_stays_where_nothing_is_faster() -> None:
    [one], _ = tuned((LINEAR, 3))
    assert one.microseconds == one.microseconds_before
    assert one.meta == device().configured("linear", **one.key).meta


def test_on_a_chip_what_spills_or_is_over_a_budget_is_never_measured() -> None:
    spills = replace(WIDE, options={**WIDE.options, "maxnreg": 16})
    too_large = replace(WIDE, meta={**WIDE.meta, "BLOCK_OUTPUTS": 128, "BLOCK_INPUTS": 256}, options={"num_warps": 4, "num_stages": 6})
    fits = family.fitting(TARGETS["sm_90"], "linear", LINEAR, 3)
    assert [fits(one) for one in (WIDE, spills, too_large, BAD)] == [True, False, False, False]
    [one], _ = tuned((LINEAR, 3), candidates=lambda kernel, tokens: iter([spills, WIDE]), on=replace(device(), target=TARGETS["sm_90"]))
    assert one.tried == 1 + len(family.SHARES)


def test_one_token_and_experts_have_kernels_of_their_own_and_other_ops_none() -> None:
    work = (LINEAR, 1), (GATED, 1), (GATED, 3), (MOE, 3), (GATED.activation, 3)
    found, told = tuned(*work, candidates=lambda kernel, tokens: iter(()))
    assert [one.kernel for one in found] == ["linear_of_one_row", "gated_of_one_row", "linear", "experts"]
    assert "passed over" in told[-1]


@pytest.mark.parametrize("kernel", ["linear", "linear_of_one_row", "gated_of_one_row", "quantized_linear", "experts"])
def test_there_are_candidates_of_every_kernel_with_the_names_of_its_entries(kernel: str) -> None:
    names = set(tomllib.loads(TABLE.read_text())[kernel][-1]["meta"])
    made = list(family.candidates_of(kernel, 16))
    assert len(made) > 20
    assert all(set(one.meta) == names for one in made)


def test_entries_stand_before_the_others_and_replace_their_older_selves() -> None:
    [first], _ = tuned((LINEAR, 3), seconds=falling())
    before = TABLE.read_text()
    once = family.with_entries(before, [first])
    entry = tomllib.loads(once)["linear"][0]
    assert entry["target"] == "sm_90" and entry["key"]["rows"] == 4 and entry["meta"] == dict(first.meta)
    assert family.with_entries(once, [first]) == once
    assert {name: len(rows) for name, rows in tomllib.loads(once).items()} == {
        name: len(rows) + (name == "linear") for name, rows in tomllib.loads(before).items()
    }


def test_smaller_sizes_stand_before_larger_ones() -> None:
    found, _ = tuned((LINEAR, 64), (LINEAR, 3))
    rows = [entry["key"]["rows"] for entry in tomllib.loads(family.with_entries("", found))["linear"]]
    assert rows == [4, 64]


def test_a_table_may_be_written_elsewhere(tmp_path: Path) -> None:
    found, _ = tuned((LINEAR, 3))
    assert family.save(found, tmp_path / "own.toml") == tmp_path / "own.toml"
    assert tomllib.loads((tmp_path / "own.toml").read_text())["linear"][0]["target"] == "sm_90"


def refused(capsys: Any, *arguments: str) -> str:
    assert main(["tune", "kernels", *arguments]) == 1
    return str(capsys.readouterr().err)


def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "on a machine that has the GPU" in refused(capsys, "--platform", "cuda:interpreted", "--linear", "64x64")
    assert "on a machine that has the GPU" in refused(capsys, "--platform", "cuda:interpreted", "--shape", "tiny", "--quantization", "int8")
    assert "use cuda or rocm" in refused(capsys, "--platform", "cpu", "--linear", "64x64")


def test_wrong_arguments_are_told_with_the_right_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write OUTPUTSxINPUTS" in refused(capsys, "--platform", "cuda:interpreted", "--linear", "64")
    assert "write numbers from 1 on" in refused(capsys, "--linear", "64x64", "--tokens", "0,2")
    assert "is unknown" in refused(capsys, "--platform", "cuda:interpreted", "--linear", "64x64", "--quantization", "int9")
    assert "llama-1b" in refused(capsys, "--platform", "cuda:interpreted", "--shape", "llama-1")


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "kernels", "--help"])
    told = capsys.readouterr().out
    assert "inferplane tune kernels --platform rocm --linear" in told and "Nothing is ever measured while serving" in told
