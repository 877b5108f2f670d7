"""A model is found in a folder, in the package or on the hub; whatever goes wrong there is told with a remedy."""
from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from inferplane.core import hub
from inferplane.errors import ConfigError, ModelNotFound

SHA = "c0ffee" + "0" * 34
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "README.md": b"read me",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"twice",
    "onnx/model.safetensors": b"other",
}
REPOSITORIES = {"org/plain": FILES, "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}
ASK = """
import json, sys
from inferplane.core.hub import locate
from inferplane.errors import InferplaneError
try:
    folder = locate(*json.loads(sys.argv[1]))
    print(json.dumps(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())))
except InferplaneError as error:
    print(f"{type(error).__name__}: {error}")
"""


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub's API as a download needs: repository, tree, files; and its ways to say no."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").split("/")
        owner_name = "/".join(path[2:4]) if path[0] == "api" else "/".join(path[:2])
        if owner_name == "org/gated":
            return self.say(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if owner_name == "org/broken":
            return self.say(500, {"error": "down"})
        files = REPOSITORIES.get(owner_name)
        if files is None:
            return self.say(401, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        if path[0] != "api":
            return self.file(files["/".join(path[4:])])
        if path[4:5] == ["tree"]:
            return self.say(
                200,
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ],
            )
        if path[4:6] not in ([], ["revision", "main"], ["revision", SHA]):
            return self.say(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name} for name in files]
        return self.say(200, {"id": owner_name, "sha": SHA, "private": False, "tags": [], "siblings": siblings})

    def file(self, data: bytes) -> None:
        self.say(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})

    def say(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(cache: Path, endpoint: str, *arguments: Any, **environment: str) -> str:
    """`locate` in a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", ASK, json.dumps(arguments)]
    done = subprocess.run(command, env=kept | told | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_hub_name_fetches_only_what_is_needed_and_then_works_offline(endpoint: str, tmp_path: Path) -> None:
    wanted = json.dumps(["config.json", "model.safetensors", "tokenizer.json"])
    assert ask(tmp_path, endpoint, "org/plain") == wanted
    assert ask(tmp_path, endpoint, "org/plain", HF_HUB_OFFLINE="1") == wanted
    assert ask(tmp_path, endpoint, "org/plain", SHA) == wanted
    assert ask(tmp_path, "http://127.0.0.1:9", "org/plain") == wanted


@pytest.mark.parametrize(("arguments", "message"), [
    (["org/nowhere"], "ModelNotFound: no model 'org/nowhere'"),
    (["org/gated"], "ModelNotFound: 'org/gated' on .* is gated. Remedy: accept its terms"),
    (["org/broken"], "ModelNotFound: 'org/broken' on .* the hub cannot be reached.*500"),
    (["org/plain", "v9"], "ModelNotFound: no such revision: 'org/plain' at revision 'v9'"),
    (["org/bad name"], "ModelNotFound: 'org/bad name' is neither a folder nor a hub name"),
    (["org/pickles"], "CheckpointError: 'org/pickles' on .* has no \\*.safetensors"),
], ids=["unknown", "gated", "server-error", "revision", "no-name", "pickles"])
def test_a_hub_name_that_cannot_be_had_says_why_and_what_to_do(
    arguments: list[str], message: str, endpoint: str, tmp_path: Path
) -> None:
    told = ask(tmp_path, endpoint, *arguments)
    assert re.search(message, told)
    assert "Remedy" in told


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({}, "the hub cannot be reached")],
    ids=["offline-mode", "no-network"],
)
def test_without_a_network_only_the_cache_serves(environment: dict[str, str], why: str, tmp_path: Path) -> None:
    told = ask(tmp_path, "http://127.0.0.1:9", "org/plain", **environment)
    assert told.startswith("ModelNotFound")
    assert why in told
    assert "Remedy" in told


def test_an_existing_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.locate(tmp_path / "org" / "name") == tmp_path / "org" / "name"
    assert hub.locate(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match=r"is a folder. Remedy: leave the revision out"):
        hub.locate(tmp_path, "main")


def test_an_existing_folder_goes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.locate("org/name") == tmp_path / "org" / "name"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_never_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no folder.*Remedy"):
        hub.locate(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFound, match="is a file. Remedy: give the folder"):
        hub.locate(tmp_path / "model.bin")
    (tmp_path / "model.gguf").touch()
    assert hub.locate(tmp_path / "model.gguf") == tmp_path / "model.gguf"


def test_the_embedded_model_has_a_name_and_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TINY", tmp_path)
    with pytest.raises(ModelNotFound, match="embedded model.*install the package again"):
        hub.locate()
    (tmp_path / "config.json").touch()
    assert hub.locate() == hub.locate(None) == hub.locate("tiny") == tmp_path
