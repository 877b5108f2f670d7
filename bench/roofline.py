"""The roofline: the least time that a work's steps can take on a machine (Williams, Waterman, Patterson, CACM 52(4), 2009).

A step reads every weight once and multiplies it with every token:

    seconds(tokens, samples) = max(weight_bytes / read_bytes_per_second,
                                   sum over dtypes of (tokens * token_flops[dtype] + samples * sample_flops[dtype]) / flops[dtype])
    seconds(work)            = seconds(all prompt tokens, requests) + sum over later steps of seconds(running, running)

A token's FLOPs are two for each value of each linear weight, in the dtype that is multiplied: that of the codes where a scheme
quantizes activations too, else the model's. The head, and the last layer behind its attention, meet only tokens that something is
drawn for (samples). A quantized weight is its codes, scales and zero points. Attention, reading KV and
everything on the host are left out, so that the limit is one that no implementation can pass.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from ..conformance.limits import Limits
from ..core.trace import Use, trace
from ..model_zoo.base import Model
from ..ops import DTYPES, Embedding, GatedLinear, HeadLinear, Linear, Scheme, Tensor
from ..ops.quantize import SCALES
from .work import Work

MEMORY, COMPUTE = "memory", "compute"
CODE_BITS = {"int4": 4}
"""Of a packed code; every other dtype of codes has a byte."""


@dataclass(frozen=True)
class Cost:
    """What a model's step needs. token_flops: for each token. sample_flops: for each one that is drawn. Both by dtype."""

    dtype: str
    parameters: int
    weight_bytes: int
    """Read by each step: all but rows that are only looked up."""
    token_flops: Mapping[str, int]
    sample_flops: Mapping[str, int]


@dataclass(frozen=True)
class Bound:
    """The most tokens per second, and what bounds them for the greater part of the time."""

    tokens_per_second: float
    by: str


def cost(model: Model) -> Cost:
    uses = trace(model).uses
    read = {part.name: (part, scheme_of(use)) for use in uses if not isinstance(use.spec, Embedding) for part in use.weight.parts}
    linear = [use for use in uses if isinstance(use.spec, (Linear, GatedLinear, HeadLinear))]
    return Cost(
        dtype=model.dtype,
        parameters=sum(prod(tensor.shape) for tensor in model.weights.tensors().values()),
        weight_bytes=sum(tensor_bytes(part, scheme, model.dtype) for part, scheme in read.values()),
        token_flops=_flops((use for use in linear if not use.sampled), model.dtype),
        sample_flops=_flops((use for use in linear if use.sampled), model.dtype),
    )


def bound(work: Work, needs: Cost, limits: Limits) -> Bound | None:
    """None where the memory's rate is unknown. What is multiplied in a dtype without a peak takes no time."""
    if limits.read_bytes_per_second is None:
        return None
    memory = needs.weight_bytes / limits.read_bytes_per_second
    each, drawn = (_seconds(flops, limits) for flops in (needs.token_flops, needs.sample_flops))
    total, computing = 0.0, 0.0
    for count, tokens, samples in _steps(work):
        compute = tokens * each + samples * drawn
        total += count * max(memory, compute)
        computing += count * compute if compute > memory else 0.0
    return Bound(work.counted_tokens / total, COMPUTE if computing > total / 2 else MEMORY)


def _steps(work: Work) -> Iterator[tuple[int, int, int]]:
    """(how many, tokens, samples) of steps alike: all prompts at once, then those that still run."""
    yield 1, sum(work.prompt_lengths), work.requests
    done = 1
    for running, length in zip(range(work.requests, 0, -1), sorted(work.output_lengths), strict=True):
        if length > done:
            yield length - done, running, running
            done = length


def _seconds(flops: Mapping[str, int], limits: Limits) -> float:
    return sum(count / limits.flops[dtype] for dtype, count in flops.items() if dtype in limits.flops)


def _flops(uses: Iterable[Use], dtype: str) -> dict[str, int]:
    """dtype that is multiplied -> FLOPs of a token."""
    found: dict[str, int] = {}
    for use in uses:
        multiplied = multiplied_dtype(use, dtype)
        found[multiplied] = found.get(multiplied, 0) + 2 * sum(prod(tensor.shape) for tensor in use.weight.tensors)
    return found


def multiplied_dtype(use: Use, dtype: str) -> str:
    """That of the codes where a scheme quantizes activations, else the model's."""
    scheme = scheme_of(use)
    return scheme.activation if scheme and scheme.activation else dtype


def tensor_bytes(part: Tensor, scheme: Scheme | None, dtype: str) -> int:
    """As it is kept: in the model's dtype, or as codes, scales and zero points."""
    if scheme is None or len(part.shape) != 2:
        return DTYPES[dtype].itemsize * prod(part.shape)
    outputs, inputs = part.shape
    groups = prod(scheme.scale_shape(outputs, inputs))
    of_group = SCALES[scheme.scales](0).itemsize + (1 if scheme.zeros else 0)
    return outputs * inputs * CODE_BITS.get(scheme.weight, 8) // 8 + groups * of_group


def scheme_of(use: Use) -> Scheme | None:
    return use.spec.scheme if isinstance(use.spec, (Linear, GatedLinear)) else None
