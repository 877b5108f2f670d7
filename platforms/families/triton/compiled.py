"""Kernels compiled for a chip that is not there: what each takes of it, and whether it spills.

`Compiler(target).device` is a `Device` whose launches are compiled, for the types and sizes they were asked with, and not started.
Host code runs on torch's `meta` device: tensors with a shape and no memory.
"""
from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import native_specialize_impl

from ....errors import PlatformUnavailable
from ...contract import KernelCode
from .device import Device
from .interpreted import LOCK
from .launches import Launch
from .target import Target

TENSOR_COLUMNS = 512
"""Of Blackwell's tensor memory, which one program may take."""


class Compiler:
    """Compiles each combination of kernel, types, constants and options once, whatever asks for it."""

    def __init__(self, target: Target) -> None:
        """Raises `PlatformUnavailable` where the vendor's assembler is missing."""
        self.target = target
        self.known: dict[tuple[Any, ...], KernelCode] = {}
        self.asked: list[KernelCode] = []
        """One for each launch, in order."""
        _check_assembler(target)

    @property
    def device(self) -> Device:
        return Device(torch.device("meta"), self.target, self)

    @property
    def made(self) -> list[KernelCode]:
        """Each combination once."""
        return list(self.known.values())

    def __call__(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch) -> None:
        source = source_of(kernel, arguments, constants, self.target)
        key = (kernel.fn, str(source.signature), str(source.constants), str(source.attrs), *launch.options.items())
        if key not in self.known:
            self.known[key] = compiled(source, launch, self.target)
        self.asked.append(self.known[key])


def source_of(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], target: Target) -> ASTSource:
    """The kernel specialized as a launch with these arguments is: a 1 and a None are constants, alignment is known."""
    backend = type(make_backend(gpu_target(target)))
    signature, fixed, attrs = {}, {}, {}
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], fixed[(place,)] = "constexpr", value
            continue
        signature[parameter.name], found = native_specialize_impl(
            backend, value, False, not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment)
        if signature[parameter.name] == "constexpr":
            fixed[(place,)] = found
        elif found:
            attrs[(place,)] = backend.parse_attr(found)
    return ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attrs)


def compiled(source: ASTSource, launch: Launch, target: Target) -> KernelCode:
    """One kernel through the vendor's own assembler. An error of the compiler is part of the answer."""
    about = (source.name, target.arch, _arguments(source), ", ".join(f"{name}={value}" for name, value in launch.options.items()))
    try:
        with LOCK:
            made = triton.compile(source, target=gpu_target(target), options=dict(launch.options))
        registers, spilled = _amd(made.asm["amdgcn"]) if target.vendor == "amd" else _nvidia(made, target)
    except Exception as error:
        return KernelCode(*about, reason=_told(error))
    return KernelCode(*about, registers, made.metadata.shared, spilled, _over(made.metadata, spilled, target))


def _arguments(source: ASTSource) -> str:
    """Constants with a '=', types with a ':' and what is known of values: `:divisibility=16`, `:pointer_range=32`."""
    told = []
    for place, (name, kind) in enumerate(source.signature.items()):
        known = "".join(f":{what.removeprefix('tt.')}={value}" for what, value in source.attrs.get((place,), ()))
        told.append(f"{name}={source.constants[(place,)]}" if (place,) in source.constants else f"{name}:{kind}{known}")
    return ", ".join(told)


def _over(metadata: Any, spilled: int, target: Target) -> str:
    """Which of the chip's budgets the kernel is over, in words; empty where it fits."""
    found = []
    if metadata.shared > target.shared_bytes:
        found.append(f"{metadata.shared:,} bytes of shared memory, and a program has {target.shared_bytes:,}")
    if (columns := getattr(metadata, "tmem_size", None) or 0) > TENSOR_COLUMNS:
        found.append(f"{columns:,} columns of tensor memory, and a program has {TENSOR_COLUMNS}")
    if spilled:
        found.append(f"{spilled:,} bytes of a thread spill")
    return "; ".join(found)


def _check_assembler(target: Target) -> None:
    """NVIDIA's is a program of its own; AMD's is part of Triton's library."""
    if target.vendor == "nvidia":
        try:
            get_ptxas(gpu_target(target).arch)
        except RuntimeError as error:
            raise PlatformUnavailable(f"kernels for {target.arch} are assembled by ptxas: {error}. Reinstall triton, whose wheels bring "
                                      "it, or name one in TRITON_PTXAS_PATH and TRITON_PTXAS_BLACKWELL_PATH.") from None


def _told(error: BaseException) -> str:
    """The innermost error: the compiler wraps one for each function on the way to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def gpu_target(target: Target) -> GPUTarget:
    """What Triton calls it."""
    if target.vendor == "amd":
        return GPUTarget("hip", target.arch, target.warp_size)
    return GPUTarget("cuda", int(target.arch.removeprefix("sm_")), target.warp_size)


def _amd(assembly: str) -> tuple[int, int]:
    """(vector registers, bytes that one thread keeps in memory) from the metadata behind the code.

    Scalar registers spill into vector ones, which shows nowhere but in the memory of a thread, the private segment.
    """
    def told(name: str) -> int:
        return max((int(found) for found in re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

    return told("vgpr_count"), max(4 * (told("vgpr_spill_count") + told("sgpr_spill_count")), told("private_segment_fixed_size"))


def _nvidia(made: Any, target: Target) -> tuple[int, int]:
    """(registers, bytes spilled by one thread). What has a stack is assembled again to hear whether it is one of spills."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(made.asm["cubin"])
        told = _said([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)])
        registers, stack = (int(found) for found in re.search(r"REG:(\d+) STACK:(\d+)", told).groups())
        return registers, _spilled(made, target, Path(folder, "kernel.ptx")) if stack else 0


def _spilled(made: Any, target: Target, file: Path) -> int:
    """Bytes that ptxas says it stores, called as Triton calls it; a stack may also hold what a library function keeps there."""
    file.write_text(made.asm["ptx"], encoding="utf-8")
    arch = gpu_target(target).arch
    command = [get_ptxas(arch).path, "-v", "-lineinfo", "--regAllocOptLevel=2", f"--gpu-name=sm_{arch}{'a' * (arch >= 90)}"]
    command += [] if made.metadata.enable_fp_fusion else ["--fmad=false"]
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", _said([*command, str(file), "-o", f"{file}.cubin"]))))


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout + done.stderr
