"""The arrows between rooms: what each file may import. Read from the sources, so nothing has to be installed."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"tests", "ci", "docs", "build", "dist"}
WEB = {"starlette", "uvicorn", "pydantic", "pydantic_core", "prometheus_client", "httptools", "fastapi", "openai", "httpx", "httpx2"}
"""What the extra `serve` installs, and clients: without them everything but the server works."""
LOAD_CLIENT = "bench/serve_client.py"
"""The one client; the extra `bench` installs what it needs."""
FRAMEWORKS = {"torch", "jax", "jaxlib", "triton", "torch_xla", "tensorflow", "transformers"}
LOWER = {"ops": {"errors"}, "model_zoo": {"ops", "errors"}, "errors": set()}
"""A room, and the rooms it may import besides itself."""
CORE = {"model_zoo", "platforms.contract", "platforms.registry", "ops", "errors"}
TOP = {"core", ".", *CORE}
ALLOWED = {
    **LOWER,
    "core": CORE,
    "conformance": {"conformance.mutants", *TOP}, "serving": {"core", ".", "errors"}, "bench": {"conformance", *TOP},
    "cli": {"commands", "conformance", "serving", "bench", *TOP},
    "commands": {"conformance", "serving", "bench", *TOP},
    "conformance.mutants": {"conformance", "platforms.reference", "platforms.families", *TOP},
    "platforms.contract": {"ops", "errors"},
    "platforms.registry": {"platforms.contract", "ops", "errors"},
    "platforms.families": {"platforms.contract", "ops", "errors"},
    ".": {"core", "errors"},
}
PLATFORM = {"platforms.contract", "platforms.families", "ops", "errors"}
"""What a platform's own folder may import: the contract and the families, never core, never another platform."""
BUILD_SCRIPTS = {"setup.py", "noxfile.py", "conftest.py"}
VENDOR = ("conformance", "example_vendor")
"""The example of a vendor's package: a distribution of its own, which imports this one by its name."""
NAMED_BY_PYTEST = {"conformance/test_platform.py"}
"""pytest may import it under another name than the package's, from which nothing relative can be reached."""
TRAINER = "model_zoo/tiny/"
"""The script that trained the embedded model is a tool that stands beside its product; only there is torch at home."""

FILES = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in OUTSIDE | BUILD_SCRIPTS and path.relative_to(ROOT).parts[:2] != VENDOR
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def module_of(file: str) -> tuple[str, ...]:
    parts = Path(file).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(file: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of all that a file imports; what lies in the package starts with `inferplane`."""
    package = module_of(file) if file.endswith("__init__.py") else module_of(file)[:-1]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = ("inferplane", *package[: len(package) - node.level + 1]) if node.level else ()
            base = [*inside, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module", "__import__"):
            yield from ((argument.value, node.lineno) for argument in node.args[:1] if isinstance(argument, ast.Constant))


def room_of(module: tuple[str, ...]) -> str:
    """`core.kv.blocks` -> core; platforms are told apart, and planted bugs: variants of the reference platform's kernels."""
    if not module:
        return "."
    return ".".join(module[:2]) if module[0] == "platforms" or module[:2] == ("conformance", "mutants") else module[0]


def target_room(name: str) -> str:
    parts = tuple(name.split(".")[1:])
    while parts and not (ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file()):
        parts = parts[:-1]
    return room_of(parts)


def allowed(room: str) -> set[str]:
    if room in ALLOWED:
        return ALLOWED[room]
    return PLATFORM if room.startswith("platforms") else set()


def frameworks_allowed(file: str, room: str) -> bool:
    return room.startswith("platforms.") or room in ("conformance", "conformance.mutants", "bench") or file.startswith(TRAINER)


def test_there_are_files_to_read() -> None:
    assert {"errors.py", "ops/kernel.py", "platforms/registry.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_import_follows_an_arrow_of_the_design(file: str) -> None:
    room = room_of(module_of(file))
    wrong = [
        f"{file}:{line} imports {name}; {room} may import {', '.join(sorted(allowed(room))) or 'nothing'}"
        for name, line in imports(file)
        if name.split(".")[0] == "inferplane" and target_room(name) not in {room, *allowed(room)}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES)
def test_only_platforms_import_a_tensor_framework(file: str) -> None:
    wrong = [f"{file}:{line} imports {name}" for name, line in imports(file) if name.split(".")[0] in FRAMEWORKS]
    assert frameworks_allowed(file, room_of(module_of(file))) or not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", [file for file in FILES if room_of(module_of(file)) != "serving" and file != LOAD_CLIENT])
def test_only_the_server_imports_what_it_is_built_on(file: str) -> None:
    wrong = [f"{file}:{line} imports {name}" for name, line in imports(file) if name.split(".")[0] in WEB]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", FILES)
def test_imports_inside_the_package_are_relative(file: str) -> None:
    tree = tree_of(file)
    absolute = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
                if not getattr(node, "level", 0) and name.split(".")[0] == "inferplane"]
    excused = file.startswith(TRAINER) or file in NAMED_BY_PYTEST
    assert not absolute or excused, f"{file}: absolute imports of the package at lines {absolute}"


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith("platforms/")])
def test_nothing_asks_what_a_platform_is(file: str) -> None:
    """No `is_cuda()`, no `platform.name == "cuda"`: the core asks what is supported."""
    vendors = {"cuda", "rocm", "tpu", "xpu", "gaudi", "hpu"}
    wrong = []
    for node in ast.walk(tree_of(file)):
        named = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if named.removeprefix("is_") in vendors and named.startswith("is_"):
            wrong.append(f"{file}:{node.lineno} asks {named}")
        if isinstance(node, ast.Compare):
            compared = {part.value for side in [node.left, *node.comparators] for part in ast.walk(side)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            if compared & vendors:
                wrong.append(f"{file}:{node.lineno} compares with {sorted(compared & vendors)}")
    assert file.startswith(TRAINER) or not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", [f for f in FILES if f != "core/env.py"])
def test_only_core_env_reads_environment_variables(file: str) -> None:
    """To set them for somebody else's package, as `os.environ |= ...`, is no reading."""
    readers = {"environ", "getenv"}
    tree = tree_of(file)
    set_only = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AugAssign)}
    wrong = [f"{file}:{node.lineno}" for node in ast.walk(tree)
             if (isinstance(node, ast.Attribute) and node.attr in readers and ast.unparse(node.value) == "os" and id(node) not in set_only)
             or (isinstance(node, ast.ImportFrom) and node.module == "os" and {alias.name for alias in node.names} & readers)]
    assert not wrong, "\n".join(wrong)
