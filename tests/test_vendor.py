"""A vendor's package, made and proved from outside: built, installed beside inferplane, certified, and caught where it cheats."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import inferplane
import pytest
from inferplane.conformance.skeleton import skeleton, write_skeleton
from inferplane.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "conformance" / "example_vendor"
PACKAGE = Path(inferplane.__file__).parent
QUERIES = ("contract", "elementwise.add", "linear.plain", "attention.decode", "graph.greedy", "engine.stop")
ADD = "elementwise.add:dtype=float32;shape=3x16;values=normal"

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Oracle results, shared by the runs of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built from a copy and installed in a folder of its own."""
    return install(VENDOR, tmp_path_factory.mktemp("acme"))


def install(source: Path, folder: Path) -> Path:
    copied, site = folder / "source", folder / "site"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(site)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, str(copied)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def run(acme: Path, cache: Path, tmp_path: Path) -> Run:
    """run("run", "--platform", "acme", ..., site=FOLDER): `inferplane conformance` in a process that sees that package."""
    def start(*arguments: str, site: Path = acme) -> Done:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")}
        variables = {**kept, "PYTHONPATH": str(site), "INFERPLANE_CACHE": str(cache), "COLUMNS": "200"}
        command = [sys.executable, "-m", "inferplane.cli", "conformance", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400, env=variables)

    return start


@pytest.fixture
def changed(acme: Path, tmp_path: Path) -> Callable[..., Path]:
    """changed(**{"kernels.py": (old, new)}): a copy of the installed package with one text replaced in some files."""
    def make(**edits: tuple[str, str]) -> Path:
        site = tmp_path / "changed"
        shutil.copytree(acme, site, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (old, new) in edits.items():
            path = site / "inferplane_acme" / name
            text = path.read_text(encoding="utf-8")
            assert old in text
            path.write_text(text.replace(old, new), encoding="utf-8")
        return site

    return make


def fingerprint(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a package that is not made by running it."""
    files = (path for path in folder.rglob("*") if path.suffix in (".py", ".so", ".toml", ".txt", ".json") and ".git" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


@pytest.fixture
def untouched() -> Iterator[None]:
    """Whatever the vendor's package does, not a byte of inferplane changes."""
    before = fingerprint(PACKAGE)
    yield
    assert fingerprint(PACKAGE) == before


def results(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["case"]: one for one in map(json.loads, lines)}


# The honest vendor


def test_the_example_is_the_skeleton_with_kernels_of_its_own() -> None:
    """The example's files but for its kernels and its excuses are the templates', filled in; write them again after a change there."""
    made = skeleton("acme")
    own = {"inferplane_acme/kernels.py", "inferplane_acme/xfail.toml"}
    files = [path.relative_to(VENDOR) for path in VENDOR.rglob("*") if path.is_file()]
    there = {str(path) for path in files if not any(part in ("__pycache__", "build") or part.endswith(".egg-info") for part in path.parts)}
    assert there == set(made)
    assert [place for place, text in made.items() if place not in own and (VENDOR / place).read_text(encoding="utf-8") != text] == []


def test_the_example_brings_a_dozen_kernels_of_its_own(acme: Path) -> None:
    script = "from inferplane_acme.kernels import own_kernels; print(*sorted(kernel.op for kernel in own_kernels()))"
    variables = {**os.environ, "PYTHONPATH": str(acme)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, timeout=60)
    assert len(done.stdout.split()) == 12, done.stderr


def test_the_example_passes_and_its_bundle_is_verified(run: Run, untouched: None, tmp_path: Path) -> None:
    done = run("run", "--platform", "acme", "--quick", "-o", "bundle", *QUERIES)
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = {kernel for one in results(tmp_path / "bundle").values() for kernel in one["kernels"]}
    assert {"acme.add", "acme.linear", "acme.attention"} <= kernels
    verified = run("verify", "bundle")
    assert verified.returncode == 0 and "acme passed" in verified.stdout


@pytest.mark.slow
def test_the_example_is_certified(run: Run) -> None:
    done = run("run", "--platform", "acme", "--profile", "core", "-o", "core")
    assert done.returncode == 0, done.stdout + done.stderr
    verified = run("verify", "core")
    assert verified.returncode == 0 and "certificate: yes" in verified.stdout


def test_one_changed_byte_of_a_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("run", "--platform", "acme", "-o", "bundle", ADD).returncode == 0
    path = tmp_path / "bundle" / "results.jsonl"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run("verify", "bundle")
    assert done.returncode == 1
    assert "results.jsonl was changed after the run" in done.stderr


# What is caught


WRONG = {"kernels.py": ("        return a + b", "        return a + b * np.float32(1.0001)")}


def test_a_kernel_that_says_yes_and_is_wrong_fails_and_replays_alone(run: Run, changed: Callable[..., Path], tmp_path: Path) -> None:
    site = changed(**WRONG)
    done = run("run", "--platform", "acme", "-o", "all", "elementwise.add:dtype=float32", site=site)
    assert done.returncode == 1
    failures = [one for one in results(tmp_path / "all").values() if one["verdict"] == "fail"]
    assert failures and all("acme.add" in one["detail"] for one in failures)
    [command, *_] = re.findall(r"^\s*(inferplane conformance run --platform acme .*)$", done.stderr + done.stdout, re.MULTILINE)
    case = shlex.split(command)[-1]
    alone = run(*shlex.split(command)[2:], "-o", "alone", site=site)
    assert alone.returncode == 1
    [again] = results(tmp_path / "alone").values()
    first = results(tmp_path / "all")[case]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}, "the failure is the same, to the last digit of its text"


def test_a_kernel_that_says_no_and_computes_anyway_is_caught(run: Run, changed: Callable[..., Path], tmp_path: Path) -> None:
    """It says no when a case asks, and yes when it is bound."""
    fickle = dedent('''
        def _fickle(spec: Any, asked: list[Any] = []) -> Support:
            asked.append(spec)
            return "does not feel like it today" if len(asked) % 2 else None


        def _embedding(''')
    site = changed(**{"kernels.py": ("def _embedding(", fickle.lstrip())})
    path = site / "inferplane_acme" / "kernels.py"
    path.write_text(path.read_text(encoding="utf-8").replace('"acme.add", _float32', '"acme.add", _fickle'), encoding="utf-8")
    done = run("run", "--platform", "acme", "-o", "bundle", ADD, site=site)
    assert done.returncode == 1
    [one] = results(tmp_path / "bundle").values()
    assert one["verdict"] == "fail"
    assert "acme.add refuses add (does not feel like it today) and can be bound to it all the same" in one["detail"]


def excuse(case: str, expires: str) -> str:
    return f'[[xfail]]\ncase = "{case}"\nreason = "adds a little too much; repaired in the next release"\nexpires = {expires}\n'


@pytest.mark.parametrize(("edits", "expires", "verdict", "said"), [
    pytest.param(WRONG, "2099-01-31", "xfail", "until 2099-01-31", id="excused"),
    pytest.param(WRONG, "2020-01-31", "fail", "the excuse in xfail.toml expired on 2020-01-31", id="expired"),
    pytest.param({}, "2099-01-31", "xpass", "passes, and xfail.toml says it fails", id="not-needed"),
])
def test_excuses_hold_for_known_failures_until_their_day(
    run: Run, changed: Callable[..., Path], tmp_path: Path, edits: dict[str, tuple[str, str]], expires: str, verdict: str, said: str
) -> None:
    site = changed(**edits)
    (site / "inferplane_acme" / "xfail.toml").write_text(excuse(ADD, expires), encoding="utf-8")
    done = run("run", "--platform", "acme", "-o", "bundle", ADD, "elementwise.multiply:dtype=float32;shape=1x7", site=site)
    one = results(tmp_path / "bundle")[ADD]
    assert (one["verdict"], done.returncode) == (verdict, 0 if verdict == "xfail" else 1), done.stdout
    assert said in one["detail"]


def test_an_excuse_for_a_case_that_does_not_exist_fails_the_run(run: Run, changed: Callable[..., Path]) -> None:
    site = changed()
    (site / "inferplane_acme" / "xfail.toml").write_text(excuse("elementwise.add:dtype=float33", "2099-01-31"), encoding="utf-8")
    done = run("run", "--platform", "acme", ADD, site=site)
    assert done.returncode == 1
    assert "stale entry in xfail.toml: elementwise.add:dtype=float33" in done.stdout


def test_an_excuse_that_says_too_little_is_refused(run: Run, changed: Callable[..., Path]) -> None:
    site = changed()
    (site / "inferplane_acme" / "xfail.toml").write_text(f'[[xfail]]\ncase = "{ADD}"\n', encoding="utf-8")
    done = run("run", "--platform", "acme", ADD, site=site)
    assert done.returncode == 1
    assert "needs case (an exact address), reason (a sentence) and expires" in done.stderr


# A new vendor


def test_a_new_package_installs_and_passes_the_contract_at_once(run: Run, tmp_path: Path) -> None:
    made = run("new", "own_chip")
    assert made.returncode == 0 and "pip install -e inferplane-own_chip" in made.stdout
    site = install(tmp_path / "inferplane-own_chip", tmp_path / "installed")
    done = run("run", "--platform", "own_chip", "contract", ADD, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "conformance-own_chip")[ADD]["kernels"] == ["own_chip.add", "numpy.reference"]


@pytest.mark.parametrize("name", ["", "Acme", "acme-x2", "2fast", "class", "auto", "cpu", "a__b", "acme/../x"])
def test_a_name_that_no_platform_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be called|is installed already"):
        write_skeleton(name, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_skeleton("acme_x2", tmp_path / "made")
    with pytest.raises(ConfigError, match="not empty; nothing was written"):
        write_skeleton("other", tmp_path / "made")
    assert not (tmp_path / "made" / "inferplane_other").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="nothing was written"):
        write_skeleton("acme_x2", tmp_path / "file")


def test_the_example_is_no_part_of_the_wheel(tmp_path: Path) -> None:
    script = dedent("""
        import setuptools
        shown = {}
        setuptools.setup = lambda **said: shown.update(said)
        exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "setup"})
        print(*shown["packages"])
        print(*shown["package_data"]["inferplane.conformance"])
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    packages, data = done.stdout.splitlines()
    assert "inferplane.conformance.cases" in packages.split()
    assert not [package for package in packages.split() if "vendor" in package or "acme" in package]
    for pattern in data.split():
        assert list((ROOT / "conformance").glob(pattern)), f"the wheel's {pattern} names no file"
    assert not list((ROOT / "conformance" / "example_vendor").glob("*.in"))
