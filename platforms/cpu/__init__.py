"""Any CPU: NumPy arrays, kernels in C++ compiled on install, the instruction set chosen at run time."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import ConfigError
from ...ops import Kernel
from ..contract import CONTRACT, Availability, Capabilities, Options
from ..families.numpy import HostPlatform, reference_kernels
from .experts import expert_kernels
from .kernels import native_kernels
from .latent import latent_kernels
from .library import NATIVE, missing_reason
from .quantized import SCHEMES, quantized_kernels

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

    def kernels(self) -> Sequence[Kernel]:
        return [*native_kernels(), *quantized_kernels(), *expert_kernels(), *latent_kernels(), *reference_kernels()]
