"""The server against its own description: schemathesis makes requests from /openapi.json, and every answer must be one it names.

SERVE_SCHEMA_EXAMPLES says how many are drawn at random for each operation, beside those that cover its parameters.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("schemathesis")

EXAMPLES = os.environ.get("SERVE_SCHEMA_EXAMPLES", "8")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_every_answer_is_one_that_the_description_names(serving: ModuleType, tmp_path: Path) -> None:
    with serving.Process(tmp_path, "--max-output-tokens", "4") as server:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json", "--checks", CHECKS,
            "--max-examples", EXAMPLES, "--seed", "1", "--request-timeout", str(serving.PATIENCE_SECONDS), "--no-color",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "Tested: 11" in done.stdout, done.stdout[-2000:]
        server.becomes("vllm:num_requests_running", 0)
        assert server.end() == 0
