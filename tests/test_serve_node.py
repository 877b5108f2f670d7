"""OpenAI's client for Node, over a real connection. Needs node, and the package `openai` in the folder NODE_CLIENT (npm install openai)."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(os.environ.get("NODE_CLIENT", Path.home() / ".cache" / "inferplane-node"))
NODE = shutil.which("node")
PATIENCE_SECONDS = 60


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.skipif(not (FOLDER / "node_modules" / "openai").is_dir(), reason=f"npm install --prefix {FOLDER} openai was not run")
def test_the_node_client_streams_a_chat_and_a_call(serving: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "client.mjs"
    shutil.copy(Path(__file__).with_name("client.mjs"), script)
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    with serving.Process(tmp_path) as server:
        command = [str(NODE), "--preserve-symlinks", str(script), f"{server.url}/v1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert server.end() == 0
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["text"], told["response"], told["name"], told["arguments"]) == (
        "blue fox 42", "blue fox 42", "get_weather", {"city": "Paris"})
    assert told["chunks"] > 3, "of 1,000 tokens"
