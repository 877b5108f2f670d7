"""One benchmark from settings to a record: load, warm up, measure each work, and say what it was measured on."""
from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..conformance.limits import measure_limits
from ..core.llm import LLM
from ..core.loader import Progress
from ..errors import ConfigError
from .latency import measure_latency
from .machine import describe_machine, describe_versions, today
from .peers.protocol import peak_bytes
from .roofline import cost
from .shapes import RandomWeights
from .throughput import measure_throughput
from .work import Work

FORMAT = 3
"""Of the record. Grows when a reader of the old one would be misled."""
PRIVATE = ("model", "tokenizer", "config")
"""Settings that may be paths, which are nobody's business in a kept record."""


@dataclass(frozen=True)
class Plan:
    """What to measure. shape: a named one instead of the settings' model. settings: names of `core.config`."""

    works: Sequence[Work]
    repeats: int = 3
    shape: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1; found {self.repeats}.")
        if self.shape is not None and self.settings.get("model") is not None:
            model = self.settings["model"]
            raise ConfigError(f"both a model, {model!r}, and a shape, {self.shape!r}, were given. Give one of them.")


def run_throughput(plan: Plan, progress: Progress | None = None, kind: str = "throughput") -> dict[str, Any]:
    """The record of `inferplane bench throughput`, or of `sweep`, whose works differ in their number of requests alone."""
    with _open(plan, progress) as (llm, record):
        rng = np.random.default_rng(plan.seed)
        results = [
            asdict(measure_throughput(llm, work, plan.repeats, rng, _teller(progress, work.name, plan.repeats))) for work in plan.works
        ]
        return record | {"kind": kind, "results": results}


def run_latency(plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """The record of `inferplane bench latency`: each client sends `repeats` requests."""
    with _open(plan, progress) as (llm, record):
        rng = np.random.default_rng(plan.seed)
        results = [
            asdict(measure_latency(llm, work, plan.repeats, rng, _teller(progress, work.name, plan.repeats * work.requests)))
            for work in plan.works
        ]
        return record | {"kind": "latency", "results": results}


@contextmanager
def _open(plan: Plan, progress: Progress | None) -> Iterator[tuple[LLM, dict[str, Any]]]:
    """A loaded model with room for the largest work, no prefix cache, and the head of its record."""
    defaults = {
        "max_model_len": max(work.length_tokens for work in plan.works),
        "max_num_seqs": max(work.requests for work in plan.works),
        "enable_prefix_caching": False, "seed": plan.seed,
    }
    settings = defaults | {name: value for name, value in plan.settings.items() if value is not None}
    source = RandomWeights.named(plan.shape, plan.seed) if plan.shape else None
    if progress:
        progress("loading", 0, 1)
    start = time.perf_counter()
    with LLM(source=source, **settings) as llm:
        loaded_seconds = time.perf_counter() - start
        if progress:
            progress("loading", 1, 1)
        yield llm, _head(plan, llm, settings, loaded_seconds)


def _head(plan: Plan, llm: LLM, settings: Mapping[str, Any], loaded_seconds: float) -> dict[str, Any]:
    loaded = llm.loaded
    needs, platform = cost(loaded.model), loaded.platform
    return {
        "format": FORMAT,
        "kind": "",
        "date": today(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "model": {
            "name": plan.shape or _model_name(settings.get("model")), "random_weights": plan.shape is not None,
            "model_type": loaded.model.model_type, **asdict(needs),
        },
        "platform": {
            "name": platform.name, "grade": platform.capabilities.grade, "devices": list(platform.capabilities.devices),
            "kernels": sorted({f"{choice.spec.op}: {choice.name}" for choice in loaded.resolution}),
        },
        "settings": {name: value for name, value in settings.items() if name not in PRIVATE},
        "repeats": plan.repeats,
        "load_seconds": loaded_seconds,
        "peak_bytes": peak_bytes(),  # before the limits read memory of their own
        "limits": asdict(measure_limits(platform)),
    }


def _model_name(model: str | None) -> str:
    """A hub name as it is; of a folder only its own name."""
    return "tiny (embedded)" if model is None else Path(model).resolve().name if Path(model).is_dir() else model


def _teller(progress: Progress | None, what: str, total: int) -> Any:
    return lambda done: progress(what, done, total) if progress else None
