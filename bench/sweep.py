"""A sweep: the same requests, more and more of them at once, and its plot with the roofline drawn in."""
from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..conformance.limits import Limits, typical
from ..errors import ConfigError
from .roofline import Cost, bound
from .work import Work

PICTURES = (".svg", ".png")
Record = Mapping[str, Any]


def sweep_works(concurrency: str, prompt_tokens: int, output_tokens: int) -> list[Work]:
    """One work for each number of requests at once, the smallest first. Raises `ConfigError`."""
    counts = [one.strip() for one in concurrency.split(",")]
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise ConfigError(f"concurrency {concurrency!r} is not a list of numbers from 1 on. Write it like 1,4,16.")
    if prompt_tokens < 1 or output_tokens < 2:
        raise ConfigError(f"{prompt_tokens} tokens in and {output_tokens} out were asked for. A sweep needs 1 in and 2 out at least.")
    tokens = (prompt_tokens, output_tokens)
    return [Work(f"{prompt_tokens}:{output_tokens}:{count}", *tokens, count) for count in sorted(set(map(int, counts)))]


def check_plot(path: Path) -> None:
    """Before minutes of measuring, not after them."""
    if path.suffix not in PICTURES:
        raise ConfigError(f"--plot {path} is of no kind that can be drawn. End its name in {' or '.join(PICTURES)}.")
    _matplotlib()


def roofline(record: Record) -> list[tuple[int, float]] | None:
    """(requests at once, tokens per second at most), at every number up to the largest; None where nobody measured the memory."""
    first, last = record["results"][0], record["results"][-1]
    limits = typical([Limits(**one["limits"]) for one in record["results"]])
    needs = Cost(**{name: record["model"][name] for name in Cost.__dataclass_fields__})
    tokens = (first["work"]["prompt_tokens"], first["work"]["output_tokens"])
    counts = range(first["work"]["requests"], last["work"]["requests"] + 1)
    found = [bound(Work("", *tokens, count), needs, limits) for count in counts]
    return [(count, one.tokens_per_second) for count, one in zip(counts, found, strict=True) if one] or None


def draw(record: Record, path: Path) -> None:
    """The record of a sweep as a picture of the kind that the name of `path` ends in."""
    _matplotlib()
    from matplotlib.figure import Figure

    results = record["results"]
    counts, rates = ([one["work"]["requests"] for one in results], [one["tokens_per_second"] for one in results])
    around = [[abs(one[end] - one["tokens_per_second"]) for one in results] for end in ("slowest", "fastest")]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if limit := roofline(record):
        axes.plot(*zip(*limit, strict=True), color="0.5", linestyle="--", label="at most (roofline)")
    axes.errorbar(counts, rates, yerr=around, marker="o", capsize=3, label=f"measured (median of {record['repeats']})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests at once")
    axes.set_ylabel("output tokens per second, prefill included")
    axes.set_title(_title(record), fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _title(record: Record) -> str:
    model, work = record["model"], record["results"][0]["work"]
    held = record["settings"].get("quantization") or model["dtype"]
    tokens = f"{work['prompt_tokens']} tokens in, {work['output_tokens']} out"
    return f"{model['name']} in {held} on {record['platform']['name']}, {tokens}\n{record['machine']['cpu']}, {record['date'][:10]}"


def _matplotlib() -> None:
    try:
        import_module("matplotlib")
    except ImportError:
        raise ConfigError("--plot needs matplotlib, which is not installed. Run: pip install 'inferplane[bench]'") from None
