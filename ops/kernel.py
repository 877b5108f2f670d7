"""A platform's way of doing one op, and the compositions that stand in where a platform brings none."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .spec import Spec

Support = str | None
"""None: supported. Otherwise why not, in words for a person."""


def always(_: Spec) -> Support:
    return None


@dataclass(frozen=True)
class Kernel:
    """One platform's way of doing one op.

    run(spec, *arrays) -> array or tuple of arrays, asynchronous where the platform is.
    prepare(spec, parts) -> handle: host arrays of one weight (tensors, then biases) into this kernel's own layout.
      Without it a handle is the tuple of the parts, placed by `Platform.put`.
    takes_slices: `prepare` takes an `Uncoded` where a weight is quantized while loading, and asks it for rows at a time.
    batch_invariant: a row's bits do not depend on neighbours, padding, chunk boundaries or prefix hits.
    replayable: which work `run` starts, on which arrays, depends on shapes alone where a batch has no edits and no mask, so that
      a platform may record a step and replay it. Results are contiguous.
    layout: of handles that are trees of host arrays and may be kept on disk, a text that changes whenever what `prepare`
      makes does (a build, an instruction set); empty: never kept.
    """

    op: str
    name: str
    supports: Callable[[Any], Support]
    run: Callable[..., Any]
    prepare: Callable[[Any, Sequence[Any]], Any] | None = None
    batch_invariant: bool = False
    layout: str = ""
    takes_slices: bool = False
    replayable: bool = False


@dataclass(frozen=True)
class KernelPack:
    """What an entry point of the group `inferplane.kernels` names: kernels that go before a platform's own."""

    platform: str
    kernels: Sequence[Kernel]


@dataclass(frozen=True)
class Default:
    """An optional op composed of required ones, which are resolved like any other.

    run(ops, spec, *arrays) calls the parts through the facade `ops`.
    """

    op: str
    requires: Callable[[Any], Sequence[Spec]]
    run: Callable[..., Any]
