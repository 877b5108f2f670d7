"""The record of a load on a server as a picture: its rates over time, and its latencies by share of requests."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
CURVES = {"to the first token": "ttft_ms", "between tokens": "itl_ms", "end to end": "end_to_end_ms"}


def draw(record: Record, path: Path) -> None:
    """Of the kind that the name of `path` ends in; `sweep.check_plot` has checked it."""
    from matplotlib.figure import Figure

    [one] = record["results"]
    figure = Figure(figsize=(8, 7), layout="constrained")
    rates, latencies = figure.subplots(2, 1)
    _draw_rates(rates, one)
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
    _draw_latencies(latencies, one)
    rates.set_title(_title(record, one), fontsize=9)
    figure.savefig(path)


def _draw_rates(axes: Any, one: Record) -> None:
    line = one["timeline"]
    edges = [0.0, *line["seconds"]]
    axes.stairs(line["tokens_per_second"], edges, color="C0", fill=True, alpha=0.6, label="output tokens per second")
    axes.set_xlim(0, one["seconds"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("output tokens per second")
    other = axes.twinx()
    other.plot(line["seconds"], line["running"], color="C1", label="requests under way")
    other.set_ylim(bottom=0)
    other.set_ylabel("requests under way")
    axes.grid(alpha=0.3)


def _draw_latencies(axes: Any, one: Record) -> None:
    """A curve for each: that share of them took so long at most."""
    for name, key in CURVES.items():
        if spread := one[key]:
            shares = [(0.0, "min"), *sorted((float(place[1:]), place) for place in spread if place[0] == "p"), (100.0, "max")]
            axes.plot([spread[place] for _, place in shares], [share for share, _ in shares], marker=".", label=name)
    if good := one["goodput"]:
        for key, style in (("ttft_ms", "--"), ("itl_ms", ":")):
            if good[key]:
                axes.axvline(good[key], color="0.4", linestyle=style, label=f"SLO {key.removesuffix('_ms').upper()}")
    if axes.get_lines():
        axes.set_xscale("log")
        axes.legend(loc="lower right", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("percent that took at most so long")
    axes.grid(alpha=0.3, which="both")


def _title(record: Record, one: Record) -> str:
    ended = f"{one['completed']} of {one['requests']} requests ended well, {one['output_tokens_per_second']:,.1f} output tokens/s"
    return f"{record['server']['model']}: {record['load']['described']}\n{ended}; {record['date'][:10]}"
