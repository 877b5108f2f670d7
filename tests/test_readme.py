"""The README's commands do what it says, as they stand there."""
from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
PROMISED = re.findall(r"It says `(.*?)`", README)[0]
SERVE = (
    *(block for block in COMMANDS if "&& inferplane serve" in block), *(block for block in COMMANDS if block.startswith("curl ")),
    *(code for code in PYTHON if "openai" in code),
)
"""The section's three: to start it, to ask it by curl, and by OpenAI's client."""
INSTALL, TEST, *_ = (block.strip() for block in COMMANDS)


def test_the_first_command_installs_and_answers() -> None:
    assert INSTALL.startswith("pip install . && inferplane generate ")


def test_ci_runs_the_second_command_as_it_stands() -> None:
    assert f"\n{TEST}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not broken, broken


def assert_served(curl: str, client: str, folder: Path) -> None:
    asked = subprocess.run(["bash", "-e", "-c", curl], cwd=folder, capture_output=True, text=True, timeout=60)
    assert json.loads(asked.stdout)["choices"][0]["message"]["content"] == "85", asked.stderr
    streamed = subprocess.run([sys.executable, "-c", client], cwd=folder, capture_output=True, text=True, timeout=60)
    assert streamed.stdout == "blue fox 42", streamed.stderr


def test_the_server_answers_curl_and_the_client_as_it_says(serving: ModuleType, tmp_path: Path) -> None:
    start, *asked = SERVE
    assert start.strip() == "pip install '.[serve]' && inferplane serve"
    with serving.Process(tmp_path) as server:
        curl, client = (text.replace("http://127.0.0.1:8000", server.url) for text in asked)
        assert_served(curl, client, tmp_path)


def test_the_settings_file_is_accepted(tmp_path: Path) -> None:
    from inferplane.core.config import EngineConfig, read_file

    [text] = TOML
    file = tmp_path / "settings.toml"
    file.write_text(text, encoding="utf-8")
    config = EngineConfig.from_kwargs(**read_file(file))
    assert (config.execution.platform, config.scheduling.max_num_seqs) == ("cpu", 32)


def test_the_python_example_runs(tmp_path: Path) -> None:
    [code] = [code for code in PYTHON if "openai" not in code]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """The variables of an environment that was empty, and what the first command said in it."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INFERPLANE_", "VIRTUAL_ENV", "PYTHON"))}
    variables = {**kept, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return variables, subprocess.run(["bash", "-e", "-c", INSTALL], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=540)


@pytest.mark.slow
def test_the_first_command_works_in_a_fresh_environment(fresh: tuple[dict[str, str], subprocess.CompletedProcess[str]]) -> None:
    """Everything from an empty virtual environment to an answer from the embedded model."""
    _, done = fresh
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == PROMISED


@pytest.mark.slow
def test_the_serve_section_works_in_a_fresh_environment(
    fresh: tuple[dict[str, str], subprocess.CompletedProcess[str]], tmp_path: Path,
) -> None:
    """As it stands there, port and all; only the client is the tests' own."""
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", 8000)):
            pytest.skip("something listens on port 8000")
    start, curl, client = SERVE
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(["bash", "-e", "-c", start], cwd=ROOT, env=fresh[0], stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 540
        while "ready  http://127.0.0.1:8000/v1" not in (said := (tmp_path / "log").read_text()):
            assert server.poll() is None and time.monotonic() < end, said[-4000:]
            time.sleep(0.2)
        assert_served(curl, client, tmp_path)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM), "the shell ends by the signal; the server in it as it should"
