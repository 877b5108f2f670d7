"""The suite's own proof: broken kernels that it must fail (`BUGS`), and legal ones that it must not (`LEGAL`)."""
from __future__ import annotations

from collections.abc import Sequence

from . import attention, engine, experts, forms, linear, memory, rows, sampling
from .legal import LEGAL
from .plant import MutantPlatform, Variant

BUGS: Sequence[Variant] = tuple(
    bug for module in (rows, linear, experts, sampling, memory, attention, forms, engine) for bug in module.BUGS)

__all__ = ["BUGS", "LEGAL", "MutantPlatform", "Variant"]
