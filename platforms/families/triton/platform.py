"""The part of the contract that cuda and rocm share: our kernels before torch's, on a chip or under Triton's interpreter.

torch and triton are imported inside the methods: a subclass is loaded, and its `probe` asked, where they may be missing.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ....errors import ConfigError, PlatformUnavailable, suggest
from ....ops import BatchShape, Kernel, Spec, StateGroup
from ...contract import Availability, Buckets, Capabilities, Memory, Options, Step
from ..supports import SCHEMES
from ..torch import TorchPlatform

if TYPE_CHECKING:
    import torch

    from ..torch.launch import Launcher
    from .cross import CrossCompiler
    from .device import Device
    from .state import TritonState

INTERPRETED = "interpreted"
BUCKETS = Buckets(
    tokens=(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64),
    rows=(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64),
    samples=(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64),
    blocks=(16, 64, 256, 1024),
)
"""Small steps of decoding are captured, so their sizes are few; past 64, a step is padded by less than 64 tokens."""


class TritonPlatform(TorchPlatform):
    """`name` is the first visible device, `name:1` the second, `name:interpreted` Triton's interpreter on the CPU.

    To subclass: `name`, `vendor`, `targets`, and what `probe` looks for. A target in the options' place opens one whose launches are
    compiled and not started; `compiler` does, and nobody can name it, for `probe` refuses.
    """

    vendor: ClassVar[Literal["nvidia", "amd"]]
    chip: ClassVar[str]
    nodes: ClassVar[tuple[str, ...]]
    """Paths, as glob patterns, of which a machine with the chip has at least one."""
    build: ClassVar[str]
    """What torch's `version.py` calls its builds for the chip."""
    install: ClassVar[str]
    """How torch and triton for the chip are installed."""

    capabilities = Capabilities(dtypes=("bfloat16", "float16", "float32"), schemes=SCHEMES)

    def __init__(self, options: Options) -> None:
        from .capture import Graphs

        super().__init__(options)
        told = replace(self.capabilities, devices=(str(self.device),))
        self.interpreted = self.device.type == "cpu"
        grade = {"cpu": INTERPRETED, "meta": "compiled"}.get(self.device.type)
        self.capabilities = replace(told, grade=grade) if grade else replace(told, buckets=BUCKETS)
        self.runs_on = self._runs_on(options)
        self.graphs = None if grade else Graphs(self.device)

    @classmethod
    def compiler(cls, target: str) -> CrossCompiler:
        missing = [name for name in ("torch", "triton") if find_spec(name) is None]
        if missing:
            raise PlatformUnavailable(f"platform {cls.name!r} compiles with Triton, and Python lacks {' and '.join(missing)}. "
                                      "Remedy: pip install torch triton, on any machine; no GPU is needed.")
        if target not in cls.targets:
            raise ConfigError(f"platform {cls.name!r} compiles for {', '.join(cls.targets)}; asked for {target!r}. "
                              f"{suggest(target, cls.targets)}")
        from .cross import CrossCompiler

        return CrossCompiler(cls(Options(target)))

    @classmethod
    def probe(cls, options: Options) -> Availability:
        missing = [name for name in ("torch", "triton") if find_spec(name) is None]
        if options.text in cls.targets:
            return Availability(False, f"{options.text} is a chip that kernels are compiled for, and steps cannot run on it from here",
                                f"inferplane conformance run --platform {cls.name} --grade compiled --target {options.text}")
        if options.text == INTERPRETED:
            lacks = f"Python lacks {' and '.join(missing)}"
            return (Availability(False, lacks, "pip install torch triton") if missing else
                    Availability(True, "kernels under Triton's interpreter, on the CPU: slow, for proofs only"))
        devices = [path for pattern in cls.nodes for path in sorted(glob(pattern))]
        found = f"found {cls.chip} ({devices[0]})" if devices else f"no {cls.chip} found (no {' or '.join(cls.nodes)})"
        wrong = f"torch is not built for {cls.chip}s" if not (missing or _built_for(cls.build)) else ""
        wrong = f"Python lacks {' and '.join(missing)}" if missing else wrong
        if devices and not wrong:
            return Availability(True, f"{found}; torch and triton are installed")
        remedies = [*([] if devices else [f"Use platform 'cpu' or 'auto', or '{cls.name}:{INTERPRETED}' to try the kernels without a GPU"]),
                    *([f"For a GPU: {cls.install}"] if wrong else [])]
        return Availability(False, f"{found}{', ' if wrong else ''}{wrong}", ". ".join(remedies) + ".")

    def find_device(self, options: Options) -> torch.device:
        import torch

        if options.extra or not (options.text in ("", INTERPRETED, *self.targets) or options.text.isdecimal()):
            raise ConfigError(f"platform {self.name} takes the number of a device or {INTERPRETED!r}; found {options}")
        if options.text == INTERPRETED:
            return torch.device("cpu")
        if options.text in self.targets:
            return torch.device("meta")
        index, count = int(options.text or 0) + options.rank, torch.cuda.device_count()
        if index >= count:
            raise ConfigError(f"platform {self.name}: asked for device {index}, and torch sees {count}. Name one from 0 to {count - 1}, "
                              "or make it visible to this process.")
        return torch.device("cuda", index)

    def launcher(self) -> Launcher:
        if self.device.type != "meta":
            return super().launcher()
        from .cross import CompileLauncher

        return CompileLauncher()

    def _runs_on(self, options: Options) -> Device:
        from . import interpreted
        from .device import Device, on_chip
        from .target import TARGETS, of_device
        from .target import interpreted as interpreted_target

        if options.text in self.targets:
            from .compiled import Compiler

            return Compiler(TARGETS[options.text]).device
        if self.interpreted:
            return Device(self.device, interpreted_target(self.vendor), interpreted.start)
        return Device(self.device, of_device(self.vendor, self.device), on_chip(self.device))

    def kernels(self) -> Sequence[Kernel]:
        from .kernels import triton_kernels

        return [*triton_kernels(self.runs_on), *super().kernels()]

    def allocate(self, groups: Sequence[StateGroup], blocks: Sequence[int], slots: int) -> TritonState:
        from .state import TritonState

        return TritonState(self.runs_on, groups, blocks, slots)

    def compile(self, step: Step, shape: BatchShape) -> Any:
        """Steps that only decode are captured as a graph at their first use; others run as they are."""
        eager = super().compile(step, shape)
        if self.graphs is None or shape.longest_query > 1 or shape.edits or shape.mask_words or shape.logprobs >= 0:
            return eager
        return self.graphs.captured(eager)

    def tune_kernels(
        self, work: Sequence[tuple[Spec, int]], output: Path | None, tell: Callable[[str], None],
    ) -> tuple[Sequence[Mapping[str, Any]], Path]:
        if self.interpreted:
            raise ConfigError(f"platform {self.name}:{INTERPRETED} runs kernels under an interpreter, whose speed is not the chip's. "
                              f"Run this with --platform {self.name} on a machine that has the GPU.")
        from .tune import save, tune

        found = tune(self.runs_on, work, tell)
        return [asdict(one) for one in found], save(found, output)

    def measure_limits(self) -> Mapping[str, float]:
        """Of the chip. An interpreter's speed is nobody's limit."""
        if self.interpreted:
            return super().measure_limits()
        from .limits import measure

        return measure(self.device)

    def memory(self) -> Memory:
        """What torch's allocator holds without using it counts as free."""
        if self.interpreted:
            return super().memory()
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return Memory(total=total, free=free + idle)


def _built_for(build: str) -> bool:
    """Whether the installed torch says that it is built with `build`; read from its file, since torch takes seconds to import."""
    spec = find_spec("torch")
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    return re.search(rf"^{build}\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None
