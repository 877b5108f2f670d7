"""Kernels compiled for a chip that is not there: what each takes of it, and whether it spills.

`Compiler(target).device` is a `Device` whose launches are compiled, for the types and sizes they were asked with, and not started.
Host code runs on torch's `meta` device: tensors with a shape and no memory.
"""
from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import native_specialize_impl

from .device import Device
from .interpreted import LOCK
from .launches import Launch
from .target import Target


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes, in one configuration. Sizes are those of one program, registers those of one thread."""

    kernel: str
    target: str
    signature: str
    """Types of the arguments and values of the constants."""
    options: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    over_budget: bool
    error: str = ""

    @property
    def fits(self) -> bool:
        return not (self.error or self.over_budget or self.spilled_bytes)


class Compiler:
    """Compiles each combination of kernel, types, constants and options once; `made` tells of them in order."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.made: dict[tuple[Any, ...], Compiled] = {}

    @property
    def device(self) -> Device:
        return Device(torch.device("meta"), self.target, self.start)

    def start(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], launch: Launch) -> None:
        source = source_of(kernel, arguments, constants, self.target)
        key = (kernel.fn, str(source.signature), str(source.constants), str(source.attrs), *launch.options.items())
        if key not in self.made:
            self.made[key] = compiled(source, launch, self.target)


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
        signature[parameter.name], found = native_specialize_impl(backend, value, False, True, True)
        if signature[parameter.name] == "constexpr":
            fixed[(place,)] = found
        elif found:
            attrs[(place,)] = backend.parse_attr(found)
    return ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attrs)


def compiled(source: ASTSource, launch: Launch, target: Target) -> Compiled:
    """One kernel through the vendor's own assembler. An error of the compiler is part of the answer."""
    types = ", ".join(f"{name}={source.constants.get((place,), kind)}" for place, (name, kind) in enumerate(source.signature.items()))
    about = (source.name, target.arch, types, ", ".join(f"{name}={value}" for name, value in launch.options.items()))
    try:
        with LOCK:
            made = triton.compile(source, target=gpu_target(target), options=dict(launch.options))
        registers, spilled = _amd(made.asm["amdgcn"]) if target.vendor == "amd" else _nvidia(made.asm["ptx"], target)
    except Exception as error:
        return Compiled(*about, 0, 0, 0, False, _told(error))
    return Compiled(*about, registers, made.metadata.shared, spilled, made.metadata.shared > target.shared_bytes)


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
    """(vector registers, bytes spilled by one thread) from the metadata behind the code."""
    def told(name: str) -> int:
        return max((int(found) for found in re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

    return told("vgpr_count"), 4 * (told("vgpr_spill_count") + told("sgpr_spill_count"))


def _nvidia(ptx: str, target: Target) -> tuple[int, int]:
    """(registers, bytes spilled by one thread) as ptxas tells them; its stack may also hold what a library function keeps there."""
    name = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    tool = get_ptxas(gpu_target(target).arch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx, encoding="utf-8")
        command = [tool.path, "-v", "-lineinfo", f"--gpu-name={name[1] if name else target.arch}", str(file), "-o", f"{file}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    registers, stores = re.search(r"Used (\d+) registers", done.stderr), re.search(r"(\d+) bytes spill stores", done.stderr)
    return int(registers[1]) if registers else 0, int(stores[1]) if stores else 0
