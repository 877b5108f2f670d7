"""What a planted bug is: a mistake, where it was made before, and a platform that makes it."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...ops import Kernel, always
from ...platforms.contract import Options, Platform
from ...platforms.reference import Reference

Run = Callable[..., Any]


class MutantPlatform(Reference):
    """The reference platform with other kernels in place of its own for the same ops."""

    def __init__(self, options: Options | None = None, kernels: Sequence[Kernel] = ()) -> None:
        super().__init__(options or Options())
        self.mutants = tuple(kernels)

    def kernels(self) -> Sequence[Kernel]:
        ops = {kernel.op for kernel in self.mutants}
        return [*self.mutants, *(kernel for kernel in super().kernels() if kernel.op not in ops)]


@dataclass(frozen=True)
class Variant:
    """One way of doing `op`: wrong for a planted bug, right for a legal variant.

    name: the op and the mistake, `attention.window_one_too_wide`. source: whose bug it was ("vLLM #3385"), or why it is legal.
    make: a fresh platform; what a kernel remembers from call to call is its own. patch: what is changed in the core meanwhile.
    families: prefixes of the cases that concern it. platform: what `make` opens, which may be missing here. likely: the case to
    try first.
    """

    name: str
    op: str
    source: str
    make: Callable[[], Platform]
    families: tuple[str, ...]
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext
    platform: str = "reference"
    likely: str = ""


FAMILIES = {
    "embedding": ("lookup.embedding",), "take_rows": ("lookup.take_rows",), "derive": ("lookup.derive",),
    "split": ("lookup.split",), "concat": ("lookup.concat",), "head_linear": ("linear.heads",),
    "add": ("elementwise.add",), "multiply": ("elementwise.multiply",), "scale": ("elementwise.scale",),
    "activation": ("activation.plain",), "gated_activation": ("activation.gated",),
    "rms_norm": ("norm.rms",), "layer_norm": ("norm.layer",), "add_rms_norm": ("norm.add_rms",),
    "rope": ("rope.plain",), "qkv_rope_write": ("rope.written",), "linear": ("linear.plain",), "gated_linear": ("linear.gated",),
    "quantized": ("linear.int8", "linear.int4", "linear.fp8"), "router": ("experts.router",), "moe": ("experts.moe",),
    "sample": ("sample.",), "write_kv": ("kv.write",), "blocks": ("kv.", "contract."), "attention": ("attention.",),
}
"""The families of cases of each op."""


def kernel(name: str, op: str, source: str, run: Run, **fields: Any) -> Variant:
    """A kernel that keeps nothing between calls. fields: of `Kernel`."""
    return stateful(name, op, source, lambda: run, **fields)


def stateful(name: str, op: str, source: str, make: Callable[[], Run], **fields: Any) -> Variant:
    """A kernel whose `run` is made anew for each platform. fields: of `Kernel`."""
    def platform() -> Platform:
        return MutantPlatform(kernels=[Kernel(**{"op": op, "name": f"planted.{name}", "supports": always, "run": make(), **fields})])

    return Variant(f"{op}.{name}", op, source, platform, FAMILIES[op])


def calls() -> Iterator[int]:
    """0, 1, 2, ...: the number of a call, for kernels that go wrong later."""
    number = 0
    while True:
        yield number
        number += 1
