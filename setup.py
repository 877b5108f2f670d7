"""Packages, package data and the C++ kernels of the `cpu` platform; everything else stands in pyproject.toml."""
from __future__ import annotations

import atexit
import os
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OUTSIDE = {"build", "ci", "dist", "docs", "tests"}
NO_PACKAGES = {"__pycache__", "example_vendor"}
"""The example of a vendor's package is a distribution of its own."""
SCRIPTS = {"conftest", "noxfile", "setup"}
NATIVE = Path("platforms/cpu/native")
ONLY_FOR = {"path_avx*": ("x86_64", "amd64"), "path_amx*": ("x86_64", "amd64"), "path_neon*": ("aarch64", "arm64")}
"""Sources of one kind of processor, and how the machines that have it call themselves; a universal build takes all."""


def packages() -> list[str]:
    """Every folder whose parents, up to the root, all hold an `__init__.py` or packages: `inferplane.core.kv`, ..."""
    found = ["inferplane"]
    for folder, children, _ in os.walk(ROOT):
        top = Path(folder) == ROOT
        children[:] = sorted(c for c in children if c.isidentifier() and c not in NO_PACKAGES and not (top and c in OUTSIDE))
        found += [".".join(["inferplane", *path.relative_to(ROOT).parts])
                  for path in (Path(folder, child) for child in children) if any(path.glob("*.py"))]
    return found


def package_data() -> dict[str, list[str]]:
    data = {name: ["README.md", "*.toml"] for name in packages()[1:]}
    return data | {
        "inferplane": ["py.typed"],
        "inferplane.model_zoo.tiny": ["README.md", "checkpoint/*"],
        "inferplane.serving": ["README.md", "console/*", "dashboard.json"],
        "inferplane.conformance": ["README.md", "templates/*.in", "mustpass/*/*.txt", "results/*.json"],
    }


class Modules(build_py):
    """Leaves out the scripts that lie beside the root package's modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [(where, name, path) for where, name, path in found if package != "inferplane" or name not in SCRIPTS]


class ParallelBuild(build_ext):
    """Compiles one extension's sources side by side, and says what an install without a compiler lacks."""

    def build_extensions(self) -> None:
        serial = self.compiler.compile

        def compile_all(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: serial([source], *args, **kwargs), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_all
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            if self.editable_mode:
                for stale in (ROOT / NATIVE.parent).glob("_native*.so"):
                    stale.unlink()
            print(
                f"WARNING: the C++ kernels of platform cpu were not built ({type(error).__name__}: {error}).\n"
                "WARNING: inferplane works without them, many times slower. Install a C++17 compiler (g++ or clang++) "
                "and the Python headers, then reinstall. `inferplane platforms` tells which kernels are in use.",
                file=sys.stderr,
            )
            raise


def native_sources(machine: str) -> list[str]:
    """What is compiled for a machine named like `linux-x86_64` or `macosx-11.0-arm64`: not the other processors' paths."""
    known = any(machine.endswith(name) for names in ONLY_FOR.values() for name in names)
    others = [pattern for pattern, names in ONLY_FOR.items() if known and not machine.endswith(names)]
    paths = sorted((ROOT / NATIVE).glob("*.cpp"))
    return [str(path.relative_to(ROOT)) for path in paths if not any(path.match(pattern) for pattern in others)]


def extensions() -> list[Extension]:
    sources = native_sources(sysconfig.get_platform())
    if not sources:
        return []
    import numpy as np

    return [Extension(
        "inferplane.platforms.cpu._native",
        sources=sources,
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / NATIVE).glob("*.h")),
        include_dirs=[np.get_include()],
        extra_compile_args=["-O3", "-std=c++17", "-pthread", "-fvisibility=hidden"],
        extra_link_args=["-pthread"],
        language="c++",
        optional=True,
    )]


# Built outside the tree: a stale build/ puts deleted modules into the next wheel, a stale egg-info old entry points on sys.path.
build_base = tempfile.mkdtemp(prefix="inferplane-build-")
atexit.register(shutil.rmtree, build_base, ignore_errors=True)

setup(
    packages=packages(),
    package_data=package_data(),
    ext_modules=extensions(),
    cmdclass={"build_ext": ParallelBuild, "build_py": Modules},
    options={"build": {"build_base": build_base}, "egg_info": {"egg_base": build_base}},
)
