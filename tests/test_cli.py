"""The command line, as a person meets it: a process, its two streams and its exit code."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from inferplane import __version__

ABSENT = ("tpu", "xpu", "gaudi")
FIRST_ERROR_SECONDS = 2.0
HELP_SECONDS = 0.5

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run("generate", "x", INFERPLANE_PLATFORM="cpu", stdin=""): a finished process, never one that hangs."""

    def start(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), input=stdin, capture_output=True, text=True, cwd=tmp_path, timeout=120,
                              env=environment(**variables))

    return start


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "inferplane.cli", *arguments]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")}
    return {**kept, **variables}


def quickest(start: Callable[[], subprocess.CompletedProcess[str]], tries: int = 3) -> float:
    """Seconds of the quickest of some tries: other work on the machine only ever adds."""
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        start()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def assert_one_message(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("inferplane: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_console_script_is_the_same_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("inferplane")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"inferplane {__version__}\n")


def test_help_is_quick_and_names_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("generate", "chat", "serve", "platforms", "verify"))
    assert quickest(lambda: run("--help")) < HELP_SECONDS


@pytest.mark.parametrize("name", ["generate", "chat", "serve", "platforms", "verify"])
def test_every_command_shows_examples(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"examples:\n  inferplane {name}" in done.stdout


def test_an_unknown_platform_fails_at_once_with_the_known_ones_and_the_nearest(run: Run) -> None:
    said = assert_one_message(run("generate", "x", INFERPLANE_PLATFORM="nonsense"))
    assert "'nonsense' is not installed" in said
    assert "The nearest name is" in said
    assert all(name in said for name in ("cpu", "reference", *ABSENT))
    assert quickest(lambda: run("generate", "x", INFERPLANE_PLATFORM="nonsense")) < FIRST_ERROR_SECONDS


@pytest.mark.parametrize("name", ABSENT)
def test_a_platform_that_is_not_usable_says_why_and_what_to_install(run: Run, name: str) -> None:
    said = assert_one_message(run("generate", "x", INFERPLANE_PLATFORM=name))
    assert f"platform {name!r} cannot run here: " in said
    assert "Use platform 'cpu' or 'auto'" in said


@pytest.mark.parametrize(("arguments", "variables", "said"), [
    pytest.param(["generate", "x"], {"INFERPLANE_PLATFROM": "cpu"}, "Did you mean 'INFERPLANE_PLATFORM'", id="variable"),
    pytest.param(["generate", "x", "--platform", "cpu:isa=mmx"], {}, "isa=", id="option"),
    pytest.param(["generate", "x", "--dtype", "float3"], {}, "'float32'", id="dtype"),
    pytest.param(["generate", "x", "--model", "./nowhere"], {}, "no folder './nowhere'", id="model"),
    pytest.param(["generate", "x", "--kernel", "attention"], {}, "OP=NAME", id="kernel-form"),
    pytest.param(["generate", "x", "--kernel", "attention=fast"], {}, "has none of that name", id="kernel-name"),
    pytest.param(["generate", "x", "--max-tokens", "0"], {}, "max_tokens", id="max-tokens"),
    pytest.param(["generate", "x", "--max-tokens", "999999"], {}, "the context is", id="too-long"),
    pytest.param(["generate", "x", "--config", "none.toml"], {}, "none.toml cannot be read", id="config"),
    pytest.param(["generate"], {}, "no prompt was given", id="no-prompt"),
    pytest.param(["serve", "a", "--model", "b"], {}, "given twice", id="two-models"),
    pytest.param(["serve", "--port", "70000"], {}, "setting port must be", id="port"),
    pytest.param(["serve", "--host", "256.0.0.1"], {}, "cannot be listened on", id="host"),
    pytest.param(["serve", "--tls-cert", "none.pem"], {}, "PEM file", id="certificate"),
    pytest.param(["generate", "x", "--raw", "--system", "s"], {}, "--system needs the chat template", id="raw-system"),
    pytest.param(["platforms", "--model", "./nowhere"], {}, "no folder './nowhere'", id="table-of-no-model"),
])
def test_what_cannot_be_done_is_one_clear_message(run: Run, arguments: list[str], variables: dict[str, str], said: str) -> None:
    assert said in assert_one_message(run(*arguments, **variables))


@pytest.mark.parametrize("arguments", [[], ["generat"], ["generate", "x", "--max-tokens", "many"], ["generate", "x", "--colour"]],
                         ids=["nothing", "command", "number", "option"])
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: inferplane" in done.stderr


def test_generate_writes_the_answer_alone_on_stdout(run: Run) -> None:
    done = run("generate", "--temperature", "0", "--max-tokens", "8", "hello")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_generate_reads_a_prompt_from_a_pipe(run: Run) -> None:
    arguments = ("generate", "--temperature", "0", "--max-tokens", "8")
    assert run(*arguments, stdin="hello\n").stdout == run(*arguments, "hello").stdout


def test_stats_go_to_stderr(run: Run) -> None:
    done = run("generate", "--temperature", "0", "--max-tokens", "8", "--stats", "hello")
    assert done.returncode == 0
    assert re.search(r"\d+ tokens in [\d.]+ s, [\d.]+ tokens/s; first token after [\d.]+ s; \d+ prompt tokens, \d+ of them from "
                     r"the prefix cache; platform \w+", done.stderr)


def test_json_is_one_object_for_each_prompt(run: Run) -> None:
    done = run("generate", "--temperature", "0", "--max-tokens", "8", "--json", "hello", "world")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["hello", "world"]
    assert all(row["output_tokens"] == len(row["token_ids"]) and row["finish_reason"] in ("stop", "length") for row in rows)


def test_the_same_seed_gives_the_same_tokens_on_two_platforms(run: Run) -> None:
    arguments = ("generate", "--dtype", "float32", "--seed", "7", "--max-tokens", "12", "--json", "hello")
    rows = [json.loads(run(*arguments, INFERPLANE_PLATFORM=name).stdout) for name in ("cpu", "reference")]
    assert rows[0]["token_ids"] == rows[1]["token_ids"]


def test_a_config_file_holds_the_settings(run: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[execution]\nplatform = "nonsense"\n', encoding="utf-8")
    assert "'nonsense' is not installed" in run("generate", "x", "--config", "settings.toml").stderr
    assert "'nonsense' is not installed" in run("generate", "x", INFERPLANE_CONFIG=str(tmp_path / "settings.toml")).stderr


def test_chat_answers_each_line_of_a_pipe_and_keeps_the_conversation(run: Run) -> None:
    arguments = ("chat", "--temperature", "0", "--max-tokens", "8")
    done = run(*arguments, stdin="hello\n\n/reset\nhello\n/exit\nnever\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == second


def test_chat_goes_on_after_a_message_that_is_too_long(run: Run) -> None:
    done = run("chat", "--temperature", "0", "--max-tokens", "8", "--max-model-len", "96", stdin=f"{'word ' * 200}\nhello\n")
    assert done.returncode == 1
    assert "/reset" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_platforms_tells_of_each_one_why(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("platforms", "--json").stdout)["platforms"]}
    assert rows["reference"]["usable"]
    assert rows["cpu"]["usable"]
    assert all(not rows[name]["usable"] and rows[name]["reason"] and rows[name]["remedy"] for name in ABSENT)
    assert all(name in run("platforms").stdout for name in rows)


def test_platforms_shows_what_the_kept_runs_have_shown(run: Run) -> None:
    done = run("platforms", "--matrix")
    assert done.returncode == 0, done.stderr
    assert "| cuda:interpreted |" in done.stdout.split("\n")[0] and "attention.decode" in done.stdout
    told = json.loads(run("platforms", "--matrix", "--json").stdout)
    assert {"cuda:interpreted", "rocm:interpreted"} <= {one["platform"] for one in told}


def test_platforms_with_a_model_shows_the_kernel_of_every_op(run: Run) -> None:
    told = json.loads(run("platforms", "--platform", "reference", "--model", "tiny", "--json").stdout)
    assert {row["op"] for row in told["kernels"]} >= {"embedding", "linear", "attention", "write_kv", "rms_norm", "sample"}
    assert all(row["kernel"] for row in told["kernels"])


@pytest.mark.parametrize("name", ["generate", "chat", "platforms"])
def test_a_reader_that_leaves_early_is_no_error(name: str, tmp_path: Path) -> None:
    limit = [] if name == "platforms" else ["--max-tokens", "8"]
    process = subprocess.Popen(command(name, *limit), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, cwd=tmp_path, env=environment())
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.write("hello\n")
    process.stdin.close()
    said = process.stderr.read()
    assert process.wait(120) == 0
    assert said == ""


def test_an_interrupt_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    arguments = command("generate", "--raw", "--platform", "reference", "--max-tokens", "1500", "Once")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                               env=environment())
    assert process.stdout
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
