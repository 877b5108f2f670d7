"""A model on several devices: sums and gathered parts to the bit, and the answers that one device gives."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.score import logits
from ...model_zoo.base import Precision
from ...ops import DTYPES, Scheme, empty
from ...ops.quantize import quantize
from ...platforms.contract import Collectives, Platform, World
from ..address import Address
from ..case import Failed, Family, Params, Unsupported
from ..models import RandomSource, greedy, load_on
from ..problem import Array
from ..rig import IDLE, NO_GROUP, Rig, expect_same
from ..together import together
from .graph import config, open_choice
from .make import DTYPE, YES_NO

NEAR = 1e-4
"""How far a logit may lie from one device's, relative to the largest: sums are added up in another order."""
PROMPT, STEPS, LENGTH = 11, 3, 64
EXPERTS = ("mixtral", "qwen3_moe")
MIXTURE = {"experts": "5", "top_k": "2", "renormalize": "yes"}


def _sums(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """all_reduce and all_gather inside a step: the same bits on every device, whatever the neighbours of a row."""
    devices, dtype, shape = params.int("devices"), params["dtype"], (params.int("rows"), params.int("width"))
    if dtype not in rig.platform.capabilities.dtypes:
        raise Unsupported(f"capabilities: {', '.join(rig.platform.capabilities.dtypes)}")
    random = address.random()
    parts = [random.normal(size=shape).astype(np.float32) for _ in range(devices)]

    def work(platform: Platform, world: World, collectives: Collectives) -> list[Array]:
        def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
            whole, first = weights
            return collectives.all_reduce(whole, dtype), collectives.all_gather(whole), collectives.all_reduce(first, dtype)

        handles = platform.join(tuple(map(platform.put, (parts[rank], parts[rank][:1].copy()))) for rank in world.ranks)
        state = platform.allocate([NO_GROUP], [2], slots=1)
        return list(platform.submit(platform.compile(step, IDLE), handles, state, empty(IDLE)[0]).result())

    answers = together(rig, devices, work)
    for rank, answer in enumerate(answers):
        expect_same(f"device {rank} against device 0", answer, answers[0])
    total, gathered, first = answers[0]
    expect_same("parts in the order of ranks", [gathered], [np.concatenate(parts, axis=-1)])
    expect_same("a row alone", [first], [total[:1]])
    exact, sizes = (np.sum([turn(part.astype(np.float64)) for part in parts], axis=0) for turn in (np.array, np.abs))
    bound = devices * 2.0**-24 * sizes + _half_ulp(exact, dtype)
    wrong = np.abs(total.astype(np.float64) - exact) > bound
    if total.dtype != DTYPES[dtype] or wrong.any():
        raise Failed(f"the sum is {total.dtype}, and {int(wrong.sum())} of {wrong.size} values are further from it than float32 and one "
                     f"rounding to {dtype} allow")
    return ()


def _half_ulp(values: Array, dtype: str) -> Array:
    bits = {"float32": 24, "bfloat16": 8, "float16": 11}[dtype]
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(values), 2.0**-14))) - bits)


def _tokens(params: Params, address: Address, rig: Rig) -> tuple[str, ...]:
    """Logits of a prompt, and greedy tokens behind it: those of one device."""
    said = {**params.values, **(MIXTURE if params["model"] in EXPERTS else {}), "window": "5" if params["model"] == "gemma2" else "none"}
    stored = params["scheme"].startswith("stored.")
    scheme = None if stored or params["scheme"] == "none" else params["scheme"].replace(".", ":")
    source = (Stored if stored else RandomSource)(config(Params(said)), address.seed)
    alone = load_on(rig, source, length=LENGTH, quantization=scheme)
    prompt = address.random().integers(0, alone.model.vocab_size, PROMPT).tolist()

    def answer(loaded: Any) -> tuple[Array, Array]:
        tokens = greedy(loaded, prompt, STEPS)
        return tokens, logits(loaded, [*prompt, *tokens.tolist()])

    def work(platform: Platform, world: World, collectives: Collectives) -> tuple[Array, Array]:
        own = type(source)(source.config, source.seed)
        return answer(load_on(
            rig, own, platform=platform, length=LENGTH, quantization=scheme, world=world, collectives=collectives,
        ))

    answers = together(rig, params.int("devices"), work)
    wanted, scores = answer(alone)
    for rank, found in enumerate(answers):
        expect_same(f"device {rank} against device 0", found, answers[0])
    tokens, ours = answers[0]
    differing = np.flatnonzero(tokens != wanted)
    last = PROMPT + (int(differing[0]) if len(differing) else STEPS)
    worst = np.abs(ours[:last] - scores[:last]).max() / np.abs(scores).max()
    if worst > NEAR:
        raise Failed(f"logits are off by {worst:.3g} of the largest, more than {NEAR:g}")
    if len(differing) and not open_choice(scores[last - 1], int(tokens[differing[0]]), int(wanted[differing[0]])):
        raise Failed(f"greedy tokens {tokens.tolist()} instead of one device's {wanted.tolist()}")
    return tuple(dict.fromkeys(choice.name for choice in alone.resolution))


class Stored(RandomSource):
    """A checkpoint whose matrices are in codes already."""

    scheme = Scheme.parse("int4:g2:zeros")

    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        super().__init__(config, seed)
        self.precision = Precision(lambda module: self.scheme)

    def tensor(self, name: str) -> Any:
        floats = super().tensor(name)
        return quantize(floats, self.scheme) if floats.ndim == 2 else floats


def _quantizable(params: Params) -> bool:
    """Experts are not quantized."""
    return params["model"] not in EXPERTS or params["scheme"] == "none"


FAMILIES = [
    Family("parallel.sums", 3, {
        "devices": ("2", "3", "4"), "dtype": DTYPE, "rows": ("1", "6"), "width": ("1", "64", "97"),
    }, _sums, feature="parallel"),
    Family("parallel.tokens", 3, {
        "model": ("llama-bias", "qwen2", "qwen3", "gemma2", *EXPERTS), "devices": ("2", "4"),
        "heads": ("4/4", "4/2", "8/1", "8/4"), "vocab": ("96", "97"), "tied": YES_NO,
        "scheme": ("none", "int8.g2", "float8_e4m3fn", "stored.int4.g2.zeros"),
    }, _tokens, _quantizable, feature="parallel"),
]
