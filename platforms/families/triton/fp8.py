"""The 8-bit floats of a chip: what a product takes them as, and e4m3fn's bits as those of AMD's e4m3fnuz."""
from __future__ import annotations

from torch import Tensor

from .target import Target

FORMS = {"float8_e4m3fn": "e4m3", "float8_e4m3fnuz": "e4m3fnuz"}
"""torch's name of a float whose codes may be multiplied as they are: what the kernels call its bits."""


def multiplied_as(target: Target) -> str | None:
    """The 8-bit float that the chip's matrix unit takes e4m3 codes as; None: it has none, and they are widened."""
    return next((name for name in FORMS if name in target.float8), None)


def as_fnuz(bits: Tensor) -> Tensor:
    """e4m3fn bits (uint8) -> e4m3fnuz bits of half the value each. Every finite code has such a one; NaN stays NaN.

    The exponents differ by one, so that the same bits mean half as much; -0 would be NaN there and becomes 0.
    """
    made = bits.masked_fill(bits == 0x80, 0)
    return made.masked_fill((bits & 0x7F) == 0x7F, 0x80)
