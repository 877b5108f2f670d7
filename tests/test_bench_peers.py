"""Our side of the comparison with other engines: the model that is written, the script's answers, and the table."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inferplane.bench.peers.__main__ import main
from inferplane.bench.peers.compare import PEERS, Comparison
from inferplane.bench.peers.gguf_file import _interleaved, _name
from inferplane.bench.peers.make_model import make_model
from inferplane.bench.peers.table import markdown, rows
from inferplane.bench.shapes import SHAPES, RandomWeights
from inferplane.bench.work import WORKS
from inferplane.core.llm import LLM
from inferplane.core.request import SamplingParams
from inferplane.errors import ConfigError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model("tiny", folder / "tiny" / "checkpoint")
    return folder


def answers(llm: LLM) -> tuple[int, ...]:
    [answer] = llm.generate([{"prompt_token_ids": [3, 5, 7]}], SamplingParams(max_tokens=8, temperature=0.0))
    return answer.outputs[0].token_ids


def test_the_checkpoint_is_the_shape_with_its_random_weights(models: Path) -> None:
    written = LLM(model=str(models / "tiny" / "checkpoint"), platform="reference")
    made = LLM(source=RandomWeights.named("tiny"), platform="reference")
    with written, made:
        assert answers(written) == answers(made)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_our_script_answers_each_work_with_a_line(weights: str, models: Path) -> None:
    command = [sys.executable, "-m", "inferplane.bench.peers.ours", "run", "--model", str(models / "tiny" / "checkpoint"),
               "--weights", weights, "--tokens", "64"]
    done = subprocess.run(command, input="8:4:2\n16:1:1\n", capture_output=True, text=True, check=True)
    batch, prompt = map(json.loads, done.stdout.splitlines())
    assert set(batch) == {"peer", "version", "weights", "work", "tokens_per_s", "load_s", "peak_bytes"}
    assert (batch["peer"], batch["weights"], batch["work"], prompt["work"]) == ("ours", weights, "8:4:2", "16:1:1")
    assert batch["tokens_per_s"] > 0 and prompt["tokens_per_s"] > 0 and batch["load_s"] > 0


def test_a_peer_that_fails_is_in_the_table_and_ends_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    (models / "tiny" / "openvino-bf16").mkdir()
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(sys, "argv", [
        "peers", "--shape", "tiny", "--peers", "openvino", "--python", f"openvino={sys.executable}", "--work", "8:4:2",
        "--weights", "bf16", "--rounds", "2", "--models", str(models), "--json", str(kept),
    ])
    assert main() == 0
    table = capsys.readouterr().out
    [row] = rows(json.loads(kept.read_text()))
    assert row.ours is not None and row.ours > 0
    assert row.tokens_per_s is None and row.ratio is None
    assert "No module named" in table


def test_an_environment_that_is_missing_is_named_with_its_session(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Make its environment with `nox -s peers-llama`"):
        Comparison("tiny", ["llama"], [WORKS["decode1"]], ["bf16"], 1, 1, tmp_path, {"llama": tmp_path / "none"})


def run(peer: str, turn: int, rate: float, beside: str = "openvino", failed: str | None = None) -> dict[str, Any]:
    measured = {"version": "9.1", "tokens_per_s": rate, "load_s": 2.0, "peak_bytes": 3 * 10**9}
    most = {"tokens_per_second": 32.0 + 8 * turn, "by": "memory"}
    said = {"peer": peer, "weights": "int8", "work": "decode1", "round": turn, "beside": beside, "failed": failed, "bound": most}
    return said if failed else said | measured


def record(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "shape": "llama-1b", "threads": 2, "date": "2026-11-22T10:00:00+00:00", "rounds": 3, "machine": {"cpu": "A Processor"},
        "limits": {"read_bytes_per_second": 40e9, "flops": {"bfloat16": 9e11}}, "runs": list(runs),
    }


def test_ratios_are_those_of_neighbours() -> None:
    pairs = [(10.0, 5.0), (20.0, 5.0), (30.0, 20.0)]
    runs = [run(peer, turn, rate) for turn, pair in enumerate(pairs) for peer, rate in zip(("ours", "openvino"), pair, strict=True)]
    [row] = rows(record(*runs))
    assert (row.ours, row.tokens_per_s, row.ratio) == (20.0, 5.0, 2.0)
    assert (row.limit, row.of_limit) == (40.0, 20.0 / 40.0), "each run against the limits around it"


def test_the_table_has_a_line_for_each_peer_and_says_who_failed() -> None:
    failed = run("llama", 0, 0.0, "llama", "out of memory")
    made = record(run("ours", 0, 16.0), run("openvino", 0, 8.0), run("ours", 0, 16.0, "llama"), failed)
    lines = markdown(made).splitlines()
    assert "read 40.0 GB/s, bfloat16 900 GFLOP/s" in lines[0]
    assert "| int8 | decode1 | openvino 9.1 | 8.0 | 16.0 | 2.00 | 32.0 | 0.50 | 2.0 | 3.00 |" in lines
    assert "| int8 | decode1 | llama | - | 16.0 | - | 32.0 | 0.50 | - | - |" in lines
    assert lines[-1] == "- int8, llama: out of memory"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_has_a_name_of_its_own_in_a_gguf(shape: str) -> None:
    names = [_name(name) for name in RandomWeights.named(shape).tensors]
    assert len(set(names)) == len(names)
    assert {"token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"} <= set(names)


def test_llama_cpp_rotates_neighbours_where_the_checkpoint_rotates_halves() -> None:
    rows_of_two_heads = np.arange(8)[:, None]
    assert _interleaved(rows_of_two_heads, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_every_peer_holds_bf16() -> None:
    assert all("bf16" in peer.weights for peer in PEERS.values())
