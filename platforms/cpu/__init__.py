"""Any CPU: NumPy arrays, kernels in C++ compiled on install, the instruction set chosen at run time."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ...errors import ConfigError
from ...ops import BatchShape, Kernel, Packed
from ..contract import CONTRACT, Availability, Capabilities, Options, Step
from ..families.numpy import HostPlatform, reference_kernels
from .experts import expert_kernels
from .kernels import native_kernels
from .latent import latent_kernels
from .library import NATIVE, missing_reason
from .quantized import SCHEMES, quantized_kernels
from .tapes import Recorded, Tapes

ISAS = ("auto", "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "neon", "neon_bf16")


class Cpu(HostPlatform):
    """What `auto` falls back to last. Options: `cpu:isa=avx2` and `cpu:threads=4`."""

    name = "cpu"
    contract = CONTRACT
    preference = 0
    capabilities = Capabilities(dtypes=("bfloat16", "float32", "float16"), schemes=(*SCHEMES, "float8_e4m3fn"))

    def __init__(self, options: Options) -> None:
        isa = dict(options.extra).pop("isa", "auto")
        if options.text or set(options.extra) - {"isa"} or isa not in ISAS:
            raise ConfigError(f"platform cpu takes isa={'|'.join(ISAS)} and threads=N; found {options}")
        super().__init__(options)
        self._tapes = Tapes()
        if NATIVE is None:
            return
        try:
            NATIVE.select(isa)
            NATIVE.set_threads(options.threads or 0)
        except ValueError as error:
            raise ConfigError(f"platform cpu: {error}") from None

    @classmethod
    def probe(cls, options: Options) -> Availability:
        if NATIVE is None:
            return Availability(True, f"any CPU, with the slow reference kernels: {missing_reason()}")
        found = NATIVE.features()
        return Availability(True, f"any CPU; kernels for {found['path']}, {found['threads']} threads")

    def measure_limits(self) -> Mapping[str, float]:
        return NATIVE.measure_limits() if NATIVE is not None else {}

    def record(self, step: Step, shape: BatchShape) -> Any:
        """Steps that only decode are recorded; others run as they are."""
        return self._tapes.recorded(step, shape) or self.compile(step, shape)

    def submit(self, compiled: Any, weights: Any, state: Any, packed: Packed) -> Future[Any]:
        if isinstance(compiled, Recorded):
            return self._steps.submit(compiled.run, weights, state, packed)
        return super().submit(compiled, weights, state, packed)

    def close(self) -> None:
        super().close()
        self._tapes.clear()

    def kernels(self) -> Sequence[Kernel]:
        return [*native_kernels(), *quantized_kernels(), *expert_kernels(), *latent_kernels(), *reference_kernels()]
