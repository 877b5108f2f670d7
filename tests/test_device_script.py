"""ci/device.sh and ci/wheels.sh: they teach, and refuse what cannot be meant before anything is made."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parent.parent / "ci"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts need bash")


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    work = ["--work", str(folder / "work")] if script == "device.sh" else []
    return subprocess.run(["bash", str(CI / script), *arguments, *work], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("script", ["device.sh", "wheels.sh"])
def test_help_names_every_option_and_gives_an_example(script: str, tmp_path: Path) -> None:
    told = run(script, "--help", folder=tmp_path)
    assert told.returncode == 0 and told.stderr == ""
    taken = [word for line in (CI / script).read_text().splitlines() if line.strip().endswith(")") and "--" in line
             for word in line.strip(" )").split(" | ") if word.startswith("--")]
    assert taken and [option for option in taken if option not in told.stdout] == []
    assert "example" in told.stdout and f"ci/{script}" in told.stdout


REFUSED = {
    "--shard 3": "write I/N with 1 <= I <= N", "--shard 3/2": "write I/N with 1 <= I <= N", "--shard 0/2": "write I/N",
    "--shard": "--shard needs a value", "--bench llama": "one of llama-8b qwen3-0.6b transformers", "--fast": "unknown argument --fast",
    "--shards 0": "a number from 1 on", "--seconds soon": "a number from 1 on",
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_is_right(arguments: str, said: str, tmp_path: Path) -> None:
    told = run("device.sh", *arguments.split(), folder=tmp_path)
    if arguments == "--shard":
        told = subprocess.run(["bash", str(CI / "device.sh"), arguments], capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 2 and said in told.stderr
    assert not (tmp_path / "work").exists()


def test_without_wheels_it_says_how_to_get_them(tmp_path: Path) -> None:
    told = run("device.sh", "--install", "--wheels", str(tmp_path), folder=tmp_path)
    assert told.returncode == 2 and "run ci/wheels.sh where there is a network" in told.stderr


def test_wheels_of_another_kind_are_refused(tmp_path: Path) -> None:
    for arguments, said in {"--python 3": "write X.Y", "--arch riscv": "x86_64 or aarch64", "--fast": "unknown option --fast"}.items():
        told = run("wheels.sh", *arguments.split(), folder=tmp_path)
        assert told.returncode == 2 and said in told.stderr
