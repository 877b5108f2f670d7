"""The roofline: the least time that a work's steps can take on a machine (Williams, Waterman, Patterson, CACM 52(4), 2009).

A step reads every weight once and multiplies it with every token:

    seconds(tokens, samples) = max(weight_bytes / read_bytes_per_second,
                                   (tokens * layer_flops + samples * head_flops) / flops[dtype])
    seconds(work)            = seconds(requests * prompt_tokens, requests) + (output_tokens - 1) * seconds(requests, requests)

A token's FLOPs are two for each value of each linear weight. Attention, reading KV and everything on the host are left out,
so that the limit is one that no implementation can pass.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..conformance.limits import Limits
from ..core.trace import trace
from ..model_zoo.base import Model
from ..ops import DTYPES, Embedding, Linear, Weight
from .work import Work

MEMORY, COMPUTE = "memory", "compute"


@dataclass(frozen=True)
class Cost:
    """What a model's step needs. layer_flops: for each token. head_flops: for each token that is drawn."""

    dtype: str
    parameters: int
    weight_bytes: int
    """Read by each step: all but rows that are only looked up."""
    layer_flops: int
    head_flops: int


@dataclass(frozen=True)
class Bound:
    """The most tokens per second, and what bounds them for the greater part of the time."""

    tokens_per_second: float
    by: str


def cost(model: Model) -> Cost:
    uses = trace(model).uses
    read = {part.name: part for use in uses if not isinstance(use.spec, Embedding) for part in use.weight.parts}
    linear = [use for use in uses if isinstance(use.spec, Linear)]
    return Cost(
        dtype=model.dtype,
        parameters=sum(prod(tensor.shape) for tensor in model.weights.tensors().values()),
        weight_bytes=DTYPES[model.dtype].itemsize * sum(prod(tensor.shape) for tensor in read.values()),
        layer_flops=sum(_flops(use.weight) for use in linear if use.path.startswith("layers.")),
        head_flops=sum(_flops(use.weight) for use in linear if not use.path.startswith("layers.")),
    )


def bound(work: Work, needs: Cost, limits: Limits) -> Bound | None:
    """None where the memory's rate is unknown. Without a peak for the dtype the memory alone bounds."""
    if limits.read_bytes_per_second is None:
        return None
    memory = needs.weight_bytes / limits.read_bytes_per_second
    peak = limits.flops.get(needs.dtype)
    steps = [(1, work.requests * work.prompt_tokens), (work.output_tokens - 1, work.requests)]
    total, computing = 0.0, 0.0
    for count, tokens in steps:
        compute = (tokens * needs.layer_flops + work.requests * needs.head_flops) / peak if peak else 0.0
        total += count * max(memory, compute)
        computing += count * compute if compute > memory else 0.0
    return Bound(work.counted_tokens / total, COMPUTE if computing > total / 2 else MEMORY)


def _flops(weight: Weight) -> int:
    return 2 * sum(prod(tensor.shape) for tensor in weight.tensors)
