"""A model's steps, compiled for a chip that need not be there: what they need by arithmetic, and what the chip's compiler made of them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.abstract import AbstractWeights
from ..core.kv.layout import Shape, layout_for_tokens
from ..core.loader import Loaded, LoadOptions, load
from ..core.quantization import choose_precision
from ..core.start import ITEMSIZE, shared
from ..model_zoo.base import Precision
from ..ops import BatchShape, empty
from ..platforms import registry
from ..platforms.contract import Chip, Compiler, KernelCode, StepCode, StepCompiler
from .step import Needs, Row, Time, least_time, needs


@dataclass(frozen=True)
class Compiled:
    """One step. Sizes are those of one device."""

    name: str
    tokens: int
    """That tokens per second count: drawn ones of decoding, those of the prompt of a prefill."""
    needs: Needs
    time: Time | None
    """None: the compiler says nothing about its chip."""
    code: StepCode | None
    """None: the compiler makes kernels, and no whole steps."""

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.time.seconds if self.time else None

    def fits(self, chip: Chip) -> bool:
        return self.code is not None and not self.code.reason and self.code.memory_bytes <= chip.memory_bytes


@dataclass(frozen=True)
class Plan:
    """All steps of a model on the devices of a target."""

    loaded: Loaded
    chip: Chip | None
    kv_bytes: int
    steps: Sequence[Compiled]
    kernels: Sequence[KernelCode]

    @property
    def fits(self) -> bool:
        if any(code.reason for code in self.kernels):
            return False
        return self.chip is None or all(step.fits(self.chip) for step in self.steps)


def work(rows: int, prompt: int) -> dict[str, list[Row]]:
    """The steps that are compiled: every row decodes behind so many tokens; one prompt comes in at once."""
    return {f"decode of {rows} rows": [Row(1, prompt)] * rows, f"prefill of {prompt:,} tokens": [Row(prompt, prompt)]}


def compile_steps(
    config: Mapping[str, Any], stored: Precision, compiler: Compiler, options: LoadOptions, *,
    devices: int = 1, rows: int = 64, prompt: int = 2048, tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """config, stored: of the model and its checkpoint. prompt: tokens of a prompt, and of each row's context in the KV memory.

    tell(line): before each step. Raises an `InferplaneError` for what cannot be divided or computed so.
    """
    platform = compiler.platform
    world = shared(platform, devices)
    source = AbstractWeights(config, choose_precision(options.quantization, stored, options.kv_dtype))
    loaded = load(
        source, platform, replace(options, quantization=None, packed_cache=None), registry.kernel_packs(platform.name),
        world=world, collectives=platform.collectives(world) if devices > 1 else None,
    )
    layout = layout_for_tokens(loaded.states, rows * prompt, Shape(rows, prompt, prompt), ITEMSIZE)
    state = platform.allocate(loaded.states, layout.blocks, rows)
    whole = compiler if isinstance(compiler, StepCompiler) else None
    made = []
    for name, step in work(rows, prompt).items():
        tell(f"compiling the {name}")
        shape = shape_of(loaded, step)
        platform.submit(platform.compile(loaded.graph.step, shape), loaded.weights, state, empty(shape)[0]).result()
        needed = needs(loaded.model, loaded.resolution.mesh, step)
        tokens = sum(row.new for row in step)
        time, codes = (least_time(needed, whole.chip), whole.steps()) if whole else (None, ())
        made.append(Compiled(name, tokens, needed, time, codes[-1] if codes else None))
    return Plan(loaded, whole.chip if whole else None, layout.memory_bytes, made, compiler.made())


def shape_of(loaded: Loaded, rows: Sequence[Row]) -> BatchShape:
    """Of a step that samples once for each row, as the platform pads it."""
    longest = max(row.length for row in rows)
    shape = BatchShape(
        tokens=sum(row.new for row in rows), rows=len(rows), samples=len(rows),
        blocks=tuple(-(-longest // group.block_tokens) for group in loaded.states), longest_query=max(row.new for row in rows),
    )
    buckets = loaded.platform.capabilities.buckets
    return buckets.pad(shape) if buckets else shape
