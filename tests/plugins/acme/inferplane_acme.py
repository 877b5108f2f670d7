"""A platform from outside: NumPy under another name."""
from __future__ import annotations

from collections.abc import Sequence

from inferplane.ops import Kernel
from inferplane.platforms.contract import CONTRACT, Availability, Capabilities, Options
from inferplane.platforms.families.numpy import HostPlatform, reference_kernels


class Acme(HostPlatform):
    """Usable wherever NumPy is, unless it is asked to be away."""

    name = "acme"
    contract = CONTRACT
    preference = 90
    capabilities = Capabilities(dtypes=("float32",), devices=("acme0", "acme1"))

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options = options

    @classmethod
    def probe(cls, options: Options) -> Availability:
        if options.text == "away":
            return Availability(False, "the Acme card is away", "Bring it back.")
        return Availability(True, "the Acme card answers")

    def kernels(self) -> Sequence[Kernel]:
        return reference_kernels()
