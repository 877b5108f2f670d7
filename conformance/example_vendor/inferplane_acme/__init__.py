"""The platform acme: what it declares. Everything that NumPy arrays share comes from the numpy family."""
from __future__ import annotations

from collections.abc import Sequence

from inferplane.errors import ConfigError
from inferplane.ops import Kernel
from inferplane.platforms.contract import CONTRACT, Availability, Capabilities, Options
from inferplane.platforms.families.numpy import SCHEMES, HostPlatform, reference_kernels

from .kernels import own_kernels


class Acme(HostPlatform):
    """Our own kernels first; the slow references do what we have none for, or say no to."""

    name = "acme"
    contract = CONTRACT
    preference = -1
    capabilities = Capabilities(dtypes=("float32",), schemes=SCHEMES, devices=("acme0",))

    def __init__(self, options: Options) -> None:
        if options.text or options.extra:
            said = options.text or ", ".join(options.extra)
            raise ConfigError(f"platform acme takes no options, found {said}; leave out the colon")
        super().__init__(options)

    @classmethod
    def probe(cls, options: Options) -> Availability:
        return Availability(True, "NumPy, on any machine")

    def kernels(self) -> Sequence[Kernel]:
        return [*own_kernels(), *reference_kernels()]
