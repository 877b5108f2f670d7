"""Instruction sets that this machine may lack: the kernels for ARM under an emulator, and for AMX with emulated tiles."""
from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
from inferplane.errors import ConfigError
from inferplane.platforms import registry

native = pytest.importorskip("inferplane.platforms.cpu._native", reason="the C++ kernels were not built")

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "platforms/cpu/native"
CHECK = ROOT / "tests/native/check_paths.cpp"
PYTHON_SIDE = re.compile(r"bind_|arguments|module|tape")
ARM_COMPILER, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu"
PATHS = {"x86_64": ["portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"], "aarch64": ["portable", "neon", "neon_bf16"]}


def build(folder: Path, compiler: str, *flags: str) -> Path:
    """The kernels without their Python side, and the program that checks them."""
    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        include = [f"-I{SOURCES}", f"-I{CHECK.parent}"]
        subprocess.run([compiler, "-O2", "-std=c++17", "-pthread", *include, *flags, "-c", source, "-o", target], check=True, timeout=600)
        return target

    sources = [path for path in sorted(SOURCES.glob("*.cpp")) if not PYTHON_SIDE.match(path.name)]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*sources, CHECK]))
    subprocess.run([compiler, "-pthread", *objects, "-o", folder / "check_paths"], check=True, timeout=60)
    return folder / "check_paths"


def assert_all_agree(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"\d{3,} checks, 0 failures", done.stdout), done.stdout


@pytest.mark.slow
@pytest.mark.skipif("avx512_bf16" not in native.features()["paths"] or not shutil.which("g++"), reason="needs AVX-512 BF16 and g++")
def test_amx_kernels_agree_with_the_others_when_their_tiles_are_emulated(tmp_path: Path) -> None:
    assert_all_agree(build(tmp_path, "g++", "-DINFERPLANE_EMULATE_AMX"), "amx")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(ARM_COMPILER) and shutil.which("qemu-aarch64")), reason=f"needs {ARM_COMPILER} and qemu-aarch64")
def test_neon_kernels_agree_with_the_portable_ones_under_an_emulated_arm_processor(tmp_path: Path) -> None:
    assert_all_agree("qemu-aarch64", "-L", ARM_LIBRARIES, build(tmp_path, ARM_COMPILER), "neon", "neon_bf16")


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in PATHS, reason="the list is that of Linux builds")
def test_the_build_has_every_path_of_its_kind_of_processor() -> None:
    with pytest.raises(ValueError, match="known: auto, " + ", ".join(PATHS[platform.machine()]) + "$"):
        native.select("mmx")


@pytest.mark.parametrize("isa", sorted({*PATHS["x86_64"], *PATHS["aarch64"]} - {*native.features()["paths"]}))
def test_a_path_that_the_machine_lacks_is_refused_by_name(isa: str) -> None:
    with pytest.raises(ConfigError, match=f"platform cpu: select: .*'{isa}'.*(see features|known: auto)"):
        registry.named(f"cpu:isa={isa}")


@pytest.mark.parametrize(("machine", "kinds"), [
    pytest.param("linux-x86_64", {"amx", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "portable"}, id="x86"),
    pytest.param("linux-aarch64", {"neon", "neon_bf16", "portable"}, id="arm"),
    pytest.param("macosx-11.0-arm64", {"neon", "neon_bf16", "portable"}, id="arm-mac"),
    pytest.param("linux-riscv64", {"amx", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "neon", "neon_bf16", "portable"}, id="unknown"),
])
def test_a_build_takes_the_sources_of_its_own_machine(machine: str, kinds: set[str]) -> None:
    script = dedent(f"""
        import setuptools
        setuptools.setup = lambda **said: None
        made = {{"__file__": "setup.py", "__name__": "setup"}}
        exec(compile(open("setup.py").read(), "setup.py", "exec"), made)
        print(*made["native_sources"]("{machine}"))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert {name for path in done.stdout.split() for name in re.findall(r"path_(\w+)\.cpp", path)} == kinds
    assert "platforms/cpu/native/linear.cpp" in done.stdout.split()
