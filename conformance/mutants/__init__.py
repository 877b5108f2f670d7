"""The suite's own proof: broken kernels that it must fail (`BUGS`), and legal ones that it must not (`LEGAL`)."""
from __future__ import annotations

from collections.abc import Sequence

from . import attention, engine, experts, forms, gated, latent, linear, memory, parallel, quantized, rows, sampling
from .legal import LEGAL
from .plant import MutantPlatform, Variant

MODULES = (rows, linear, gated, latent, quantized, experts, sampling, memory, attention, forms, engine, parallel)
BUGS: Sequence[Variant] = tuple(bug for module in MODULES for bug in module.BUGS)

__all__ = ["BUGS", "LEGAL", "MutantPlatform", "Variant"]
