"""Google TPUs: JAX arrays, the whole step as one program, several chips as a mesh that one process holds."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, PlatformUnavailable
from ...ops import Kernel
from ..contract import CONTRACT, Availability, Buckets, Capabilities, Memory, Options
from ..families.jax import JaxPlatform
from ..families.supports import SCHEMES
from .chips import TARGETS
from .torch_xla import TORCH_XLA, TorchXla

if TYPE_CHECKING:
    import jax

    from ..families.pallas.calls import Copies
    from .compiler import TpuCompiler

INTERPRETED = "interpreted"
NODES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
"""Paths, as glob patterns, of which a machine with the chip has at least one."""
BUCKETS = Buckets(
    tokens=(8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    rows=(8, 16, 32, 64, 128, 256, 512),
    samples=(8, 16, 32, 64, 128, 256, 512),
    blocks=(8, 32, 128, 512, 2048),
)
"""A register holds 8 x 128 numbers of 32 bits, so that fewer rows than 8 cost the same; each step is a program, so the sizes are few."""
FEW_BUCKETS = Buckets(tokens=(8, 128, 1024, 8192), rows=(8, 64, 512), samples=(8, 64, 512), blocks=(8, 128, 2048), edits=(0, 1024))
"""Under an interpreter a program takes longer to compile than to run, however much of it is padding."""
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""XLA's options for the CPU that make an interpreted program in a third of the time; each runs a few times only."""
HELD = 4
"""Times that an interpreted kernel's arrays are in memory at once: XLA's, the interpreter's, and what goes between them."""
COPIES: tuple[Copies, ...] = ("on_wait", "eager", "plain")


class Tpu(JaxPlatform):
    """`tpu`, `tpu:1`; `tpu:interpreted` is JAX on the CPU, `tpu:interpreted,devices=8` with so many devices there,
    `tpu:interpreted,copies=plain` with a quicker interpreter of Pallas kernels.

    `tpu:torch_xla` is the torch family on an XLA device (torch_xla.py)."""

    name = "tpu"
    contract = CONTRACT
    parallel = "XLA's collectives over a mesh that one process holds: run on virtual CPU devices; between chips: never run"
    targets = TARGETS
    capabilities = Capabilities(
        dtypes=("bfloat16", "float32"), block_tokens=(32, 16, 64, 128, 256, 8), schemes=SCHEMES, buckets=BUCKETS, warm_up=True,
    )

    def __new__(cls, options: Options) -> Any:
        """`tpu:torch_xla` is another class, of the torch family."""
        return TorchXla(options) if options.text == TORCH_XLA else super().__new__(cls)

    def __init__(self, options: Options) -> None:
        self.interpreted = options.text == INTERPRETED
        self.quick_compile = QUICK_COMPILE if self.interpreted else None
        self.copies = _copies(options)
        super().__init__(options)
        told = replace(self.capabilities, devices=(str(self.device),))
        self.capabilities = replace(told, grade=INTERPRETED, warm_up=False, buckets=FEW_BUCKETS) if self.interpreted else told

    @classmethod
    def probe(cls, options: Options) -> Availability:
        if options.text == TORCH_XLA:
            return TorchXla.probe(options)
        if options.text == INTERPRETED:
            return (Availability(True, "JAX on the CPU, Pallas kernels under its interpreter: for proofs only") if find_spec("jax") else
                    Availability(False, "Python lacks jax", "pip install jax"))
        missing = [name for name in ("jax", "libtpu") if find_spec(name) is None]
        devices = [path for pattern in NODES for path in sorted(glob(pattern))]
        found = f"found a Google TPU ({devices[0]})" if devices else f"no Google TPU found (no {' or '.join(NODES)})"
        lacks = f", Python lacks {' and '.join(missing)}" if missing else ""
        if devices and not missing:
            return Availability(True, f"{found}; jax and libtpu are installed")
        remedies = [
            *([] if devices else [f"Use platform 'cpu' or 'auto', or 'tpu:{INTERPRETED}' to try it without a TPU"]),
            *(["For a TPU: pip install 'inferplane[tpu]'"] if missing else []),
        ]
        return Availability(False, found + lacks, ". ".join(remedies) + ".")

    @classmethod
    def compiler(cls, target: str) -> TpuCompiler:
        if missing := [name for name in ("jax", "libtpu") if find_spec(name) is None]:
            lacks = " and ".join(missing)
            raise PlatformUnavailable(f"target {target!r}: Python lacks {lacks}. pip install 'inferplane[tpu]'; no TPU is needed.")
        from .compiler import TpuCompiler

        return TpuCompiler(target)

    def kernels(self) -> Sequence[Kernel]:
        from ..families.pallas.kernels import pallas_kernels

        return [*pallas_kernels(self.interpreted, self.device, self.copies), *super().kernels()]

    def memory(self) -> Memory:
        found = super().memory()
        return replace(found, free=found.free // HELD) if self.interpreted else found

    def find_device(self, options: Options) -> jax.Device:
        import jax

        unknown = options.extra.keys() - ({"devices", "copies"} if options.text == INTERPRETED else set())
        if unknown or not (options.text in ("", INTERPRETED) or options.text.isdecimal()):
            raise ConfigError(f"platform tpu takes the number of a device, or {INTERPRETED!r} with devices=N, copies=WHEN; found {options}")
        devices = _cpu_devices(options.extra.get("devices")) if options.text == INTERPRETED else jax.local_devices(backend="tpu")
        index = options.rank if options.text == INTERPRETED else int(options.text or 0) + options.rank
        if index >= len(devices):
            remedy = f"tpu:{INTERPRETED},devices={index + 1}" if options.text == INTERPRETED else f"one from 0 to {len(devices) - 1}"
            raise ConfigError(f"platform tpu: asked for device {index}, the first being 0, and JAX has {len(devices)}. Name {remedy}.")
        return devices[index]


def _copies(options: Options) -> Copies:
    told = options.extra.get("copies", COPIES[0])
    for one in COPIES:
        if told == one:
            return one
    raise ConfigError(f"platform tpu:{INTERPRETED}: copies must be one of {', '.join(COPIES)}, found {told!r}")


def _cpu_devices(count: str | None) -> list[jax.Device]:
    """JAX's, so many of them. The count, and that no chip is looked for, can only be said before JAX has begun."""
    import jax

    if count is not None and not (count.isdecimal() and int(count)):
        raise ConfigError(f"platform tpu:{INTERPRETED}: devices must be an integer of at least 1, found {count!r}")
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    if count is not None and jax.config.jax_num_cpu_devices != int(count):
        try:
            jax.config.update("jax_num_cpu_devices", int(count))
        except RuntimeError:
            if len(found := jax.local_devices(backend="cpu")) < int(count):
                raise ConfigError(
                    f"platform tpu:{INTERPRETED}: devices={count} was asked for, and JAX runs in this process already with {len(found)}. "
                    f"Start a new process, or set XLA_FLAGS=--xla_force_host_platform_device_count={count}."
                ) from None
    return jax.local_devices(backend="cpu")
