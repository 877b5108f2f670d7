"""The suite's own proof: broken kernels that it must fail (`BUGS`), and legal ones that it must not (`LEGAL`)."""
from __future__ import annotations

from collections.abc import Sequence

from . import (
    attention,
    engine,
    experts,
    forms,
    gated,
    latent,
    linear,
    memory,
    parallel,
    quantized,
    rows,
    sampling,
    triton_attention,
    triton_linear,
    triton_rows,
)
from .legal import LEGAL
from .plant import MutantPlatform, Variant
from .source import SourceBug

MODULES = (rows, linear, gated, latent, quantized, experts, sampling, memory, attention, forms, engine, parallel)
BUGS: Sequence[Variant] = tuple(bug for module in MODULES for bug in module.BUGS)
SOURCE_BUGS: Sequence[SourceBug] = tuple(bug for module in (triton_attention, triton_linear, triton_rows) for bug in module.SOURCE_BUGS)
"""In the text of kernels that an accelerator's platform runs."""

__all__ = ["BUGS", "LEGAL", "MutantPlatform", "SOURCE_BUGS", "SourceBug", "Variant"]
