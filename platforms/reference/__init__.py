"""The oracle, and the shortest example of a platform: NumPy arrays, float64 inside every op."""
from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError
from ...ops import FLOATS, Kernel
from ..contract import CONTRACT, Availability, Capabilities, Options
from ..families.numpy import SCHEMES, HostPlatform, reference_kernels


class Reference(HostPlatform):
    """Slow and exact; asked for by name only."""

    name = "reference"
    contract = CONTRACT
    preference = -1
    capabilities = Capabilities(dtypes=("float32", *(dtype for dtype in FLOATS if dtype != "float32")), schemes=SCHEMES)

    def __init__(self, options: Options) -> None:
        if options.text or options.extra:
            said = options.text or ",".join(f"{key}={value}" for key, value in options.extra.items())
            raise ConfigError(f"reference:{said} was asked for, and reference takes no options; leave out the colon")
        super().__init__(options)

    @classmethod
    def probe(cls, options: Options) -> Availability:
        return Availability(True, "NumPy, on any machine")

    def kernels(self) -> Sequence[Kernel]:
        return reference_kernels()
