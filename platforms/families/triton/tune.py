"""Launch configurations measured on the device at hand, for the products of given specs, and written into the table."""
from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....errors import ConfigError, InferplaneError
from ....ops import DTYPES, GatedLinear, Linear, Moe, Quantized, Spec
from ....ops.quantize import CODES, SCALES
from . import experts, linear, quantized
from .compiled import Compiler
from .device import Device
from .launches import TABLE, Launch
from .target import Target

Work = Callable[[Device], Any]
Fits = Callable[[Launch], bool]
"""Whether a configuration keeps to the chip's budgets and spills nothing."""
Measure = Callable[[Callable[[], Any]], float]
"""Seconds that a call takes on the device."""
SHARES = (1, 2, 4, 8, 16)
"""SPLITS that are tried around the best tile."""
WARPS_AND_STAGES = ((4, 2), (4, 3), (4, 4), (8, 2), (8, 3), (8, 4))


@dataclass(frozen=True)
class Tuned:
    """One entry for the table, and what it gains."""

    kernel: str
    target: str
    key: Mapping[str, int | str]
    meta: Mapping[str, Any]
    options: Mapping[str, int]
    microseconds: float
    microseconds_before: float
    tried: int


@dataclass(frozen=True)
class Trying(Device):
    """A device whose configuration of one kernel is the one on trial. It keeps what the kernel asked the table with."""

    kernel: str = ""
    config: Launch | None = None
    asked: dict[str, int | str] = field(default_factory=dict)

    def configured(self, kernel: str, **key: int | str) -> Launch:
        if kernel != self.kernel:
            return super().configured(kernel, **key)
        self.asked.update(key)
        return self.config or super().configured(kernel, **key)


def measured(call: Callable[[], Any]) -> float:
    """Seconds: the median over a tenth of a second, the cache emptied before each call."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=25, rep=100, return_mode="median")) / 1e3


def tune(
    device: Device, work: Sequence[tuple[Spec, int]], tell: Callable[[str], None], measure: Measure = measured,
    candidates: Callable[..., Iterator[Launch]] | None = None,
) -> list[Tuned]:
    """work: specs, each with a number of tokens. Those of ops without a configuration of their own are passed over in words."""
    found = []
    for spec, tokens in work:
        named = kernel_of(spec, tokens)
        if named is None:
            tell(f"{spec.op}: no launch configuration to tune; passed over")
            continue
        fits = everything if device.target.interpreted else fitting(device.target, named, spec, tokens)
        one = _best(device, named, _work(device, spec, tokens), measure, (candidates or candidates_of)(named, tokens), fits)
        tell(f"{one.kernel} {dict(one.key)}: {one.microseconds:.1f} us, before {one.microseconds_before:.1f} us; {one.tried} tried")
        found.append(one)
    return found


def kernel_of(spec: Spec, tokens: int) -> str | None:
    """The table's name of the kernel that computes so many tokens."""
    if isinstance(spec, Moe):
        return "experts"
    if isinstance(spec, GatedLinear):
        return "gated_of_one_row" if tokens == 1 and spec.scheme is None else kernel_of(spec.linear, tokens)
    if not isinstance(spec, Linear):
        return None
    return "quantized_linear" if spec.scheme else "linear_of_one_row" if tokens == 1 else "linear"


def fitting(target: Target, kernel: str, spec: Spec, tokens: int) -> Fits:
    """By compiling for the target beside the chip, since a chip runs what spills, and says nothing."""
    compiler = Compiler(target)
    work = _work(compiler.device, spec, tokens)

    def fits(config: Launch) -> bool:
        before = len(compiler.asked)
        work(Trying(compiler.device.torch, target, compiler, kernel, config))
        return all(code.fits for code in compiler.asked[before:])

    return fits


def everything(config: Launch) -> bool:
    """An interpreter has no budgets."""
    return True


def _best(device: Device, kernel: str, work: Work, measure: Measure, candidates: Iterator[Launch], fits: Fits) -> Tuned:
    own = Trying(device.torch, device.target, device.start, kernel)
    before = measure(lambda: work(own))
    trials = [(own.configured(kernel, **own.asked), before)]

    def attempt(configs: Iterator[Launch]) -> tuple[Launch, float]:
        trials.extend((one, _seconds(replace(own, config=one, asked={}), work, measure)) for one in filter(fits, configs))
        return min(trials, key=lambda trial: trial[1])

    tile, _ = attempt(candidates)
    config, best = attempt(_split(tile))
    return Tuned(kernel, device.target.arch, own.asked, config.meta, config.options, best * 1e6, before * 1e6, len(trials) - 1)


def _seconds(device: Device, work: Work, measure: Measure) -> float:
    """Infinity where the compiler, or the chip, says no to a configuration: too much shared memory, too many registers."""
    try:
        return measure(lambda: work(device))
    except InferplaneError:
        raise
    except Exception:
        return float("inf")


def candidates_of(kernel: str, tokens: int) -> Iterator[Launch]:
    """Tiles, warps and stages that are worth a try."""
    if kernel.endswith("of_one_row"):
        for outputs, inputs, warps in product((1, 2, 4, 8, 16), (256, 512, 1024, 2048), (2, 4, 8)):
            yield Launch({"BLOCK_OUTPUTS": outputs, "BLOCK_INPUTS": inputs}, {"num_warps": warps, "num_stages": 1})
        return
    rows = min(128, max(16, 1 << (tokens - 1).bit_length()))
    band = {} if kernel == "experts" else {"BAND": 8}
    for height, outputs, inputs in product(sorted({max(16, rows // 2), rows}), (32, 64, 128, 256), (32, 64, 128, 256)):
        for warps, stages in WARPS_AND_STAGES:
            yield Launch({"BLOCK_ROWS": height, "BLOCK_OUTPUTS": outputs, "BLOCK_INPUTS": inputs, **band},
                         {"num_warps": warps, "num_stages": stages})


def _split(tile: Launch) -> Iterator[Launch]:
    """A tile with its inputs split in several numbers, for kernels that split them."""
    if "BAND" in tile.meta:
        for splits in SHARES:
            yield replace(tile, meta={**tile.meta, "SPLITS": splits})


# What is measured: random rows and weights of a spec.

def _work(device: Device, spec: Any, tokens: int) -> Work:
    random = np.random.default_rng(0)
    if isinstance(spec, Moe):
        return _moe(device, spec, tokens)
    gated, spec = (spec, spec.linear) if isinstance(spec, GatedLinear) else (None, spec)
    x = _normal(device, (tokens, spec.input.size), spec.dtype)
    if spec.scheme is None:
        weight: Any = (_normal(device, (sum(dim.size for dim in spec.outputs), spec.input.size), spec.dtype),)
        weight += (_normal(device, (len(weight[0]),), spec.dtype),) if spec.bias else ()
        if gated is not None and tokens == 1:
            return lambda own: linear.gated_linear(own, None, gated, x, weight, None)
        return lambda own: linear.linear(own, spec, x, weight, None)
    parts = [_codes(random, spec, dim.size) for dim in spec.outputs]
    biases = [np.zeros(dim.size, DTYPES[spec.dtype]) for dim in spec.outputs] if spec.bias else []
    packed = quantized.prepare(device, spec, [*parts, *biases])
    return lambda own: quantized.linear(own, spec, x, packed, None)


def _normal(device: Device, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    return torch.randn(shape, device=device.torch, dtype=getattr(torch, dtype))


def _codes(random: np.random.Generator, spec: Linear, outputs: int) -> Quantized:
    scheme = spec.scheme
    assert scheme is not None
    low, high = CODES[scheme.weight]
    codes = random.integers(low, high, (outputs, spec.input.size), endpoint=True)
    shape = scheme.scale_shape(outputs, spec.input.size)
    held = DTYPES["float8_e4m3fn"] if scheme.weight.startswith("float") else np.int8
    return Quantized(codes.astype(held), np.full(shape, 1e-3, SCALES[scheme.scales]), np.zeros(shape, np.int8) if scheme.zeros else None)


def _moe(device: Device, spec: Moe, tokens: int) -> Work:
    x = _normal(device, (tokens, spec.embed), spec.dtype)
    chosen = torch.rand(tokens, spec.experts.size, device=device.torch).argsort(-1)[:, : spec.top_k].int().contiguous()
    shares = torch.full(chosen.shape, 1 / spec.top_k, device=device.torch)
    weight = (_normal(device, (spec.experts.size, 2 * spec.mlp.size, spec.embed), spec.dtype),
              _normal(device, (spec.experts.size, spec.embed, spec.mlp.size), spec.dtype))
    return partial(experts.moe, spec=spec, x=x, experts=chosen, weights=shares, weight=weight, batch=None)


# The table.

def save(found: Sequence[Tuned], path: Path | None = None) -> Path:
    """The entries in front of the others of their kernels. Raises `ConfigError` where the file cannot be written."""
    path = path or TABLE
    text = (path if path.exists() else TABLE).read_text(encoding="utf-8")
    try:
        path.write_text(with_entries(text, found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the table {path} cannot be written ({error.strerror}); name another file with --output") from None
    return path


def with_entries(text: str, found: Sequence[Tuned]) -> str:
    """The table's text with these entries: smaller sizes first, older ones of the same target and key replaced."""
    keys = {(one.kernel, one.target, tuple(sorted(_key(one).items()))) for one in found}
    text = re.sub(r"\[\[(\w+)\]\]\n(?:.+\n)+\n?", lambda block: "" if _identity(block) in keys else block[0], text)
    for kernel in dict.fromkeys(one.kernel for one in found):
        entries = sorted((one for one in found if one.kernel == kernel), key=lambda one: [*map(str, _words(one)), *_sizes(one)])
        made = "".join(f"{_entry(one)}\n" for one in {tuple(_key(one).items()): one for one in entries}.values())
        place = text.find(f"[[{kernel}]]\n")
        text = f"{text[:place]}{made}{text[place:]}" if place >= 0 else f"{text.rstrip()}\n\n{made}"
    return text


def _key(one: Tuned) -> dict[str, int | str]:
    """The number of rows stands for all up to the next power of two."""
    return {name: 1 << (value - 1).bit_length() if name == "rows" and isinstance(value, int) else value for name, value in one.key.items()}


def _words(one: Tuned) -> list[str]:
    return [value for value in _key(one).values() if isinstance(value, str)]


def _sizes(one: Tuned) -> list[int]:
    return [value for value in _key(one).values() if isinstance(value, int)]


def _identity(block: re.Match[str]) -> tuple[str, str, tuple[Any, ...]]:
    [entry] = tomllib.loads(block[0])[block[1]]
    return block[1], entry["target"], tuple(sorted(entry.get("key", {}).items()))


def _entry(one: Tuned) -> str:
    lines = [f"[[{one.kernel}]]", f'target = "{one.target}"']
    for name, values in (("key", _key(one)), ("meta", one.meta), ("options", one.options)):
        if values:
            lines.append(f"{name} = {{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in values.items()) + " }")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
