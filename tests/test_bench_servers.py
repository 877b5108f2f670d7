"""What HTTP costs, beside another server. In vLLM's place stands this engine's own, started by vLLM's options."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("uvicorn")
from inferplane.bench.peers import servers

STANDS_IN = f"""#!{sys.executable}
import sys
from inferplane.cli import main
given = {{name: sys.argv[sys.argv.index(name) + 1] for name in ("--model", "--port")}}
assert sys.argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"], sys.argv
sys.exit(main(["serve", given["--model"], "--platform", "cpu", "--port", given["--port"]]))
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    script = tmp_path / "peer"
    script.write_text(STANDS_IN)
    script.chmod(0o755)
    return script


def compared(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["servers", "--shape", "tiny", "--prompt-tokens", "8", "--output-tokens", "64", "--requests", "8",
                                      "--threads", "1", *options])
    return servers.main()


def test_both_servers_stand_beside_the_offline_run_of_their_round(
    tmp_path: Path, peer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tmp_path / "record.json"
    assert compared(monkeypatch, "--models", str(tmp_path), "--peer", "--python", str(peer), "--rounds", "2", "--json", str(kept)) == 0
    record = json.loads(kept.read_text())
    assert [(run["round"], run["who"]) for run in record["runs"]] == [
        (turn, who) for turn in (0, 1) for who in ("offline", "ours", "vllm")]
    assert all(run["tokens_per_s"] > 0 and run["first_token_ms"] > 0 for run in record["runs"])
    assert all(run["server_cpu_seconds"] > 0 for run in record["runs"] if run["who"] != "offline")
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]] == ["offline", "ours", "vllm"]
    assert psutil.Process().children(recursive=True) == []


def test_a_server_that_ends_at_once_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such engine; exit 3\n")
    broken.chmod(0o755)
    assert compared(monkeypatch, "--models", str(tmp_path), "--peer", "--python", str(broken), "--rounds", "1") == 1
    assert "ended with code 3. It said:\nno such engine" in capsys.readouterr().err
