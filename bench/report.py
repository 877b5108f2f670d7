"""A record as a table for a person. A record is plain data, so one that was saved shows just the same."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]


def show(record: Record, console: Console) -> None:
    for line in headline(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_TABLES[record["kind"]](record))


def headline(record: Record) -> list[str]:
    """The model, what computed it, and what that can do at most."""
    model, machine, platform, limits = (record[name] for name in ("model", "machine", "platform", "limits"))
    weights = "random weights" if model["random_weights"] else "its own weights"
    rates = [f"read {limits['read_bytes_per_second'] / 1e9:.1f} GB/s"] if limits["read_bytes_per_second"] else []
    rates += [f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in limits["flops"].items()]
    size = f"{model['parameters'] / 1e6:,.1f} M parameters"
    return [
        f"{model['name']}: {size}, {model['dtype']}, {weights}; loaded in {record['load_seconds']:.1f} s",
        f"{platform['name']} on {machine['cpu']}, {machine['cores']} cores; load average {machine['load_average'][0]:.1f}",
        f"limits by {limits['source']}: {', '.join(rates) or 'unknown'}",
    ]


def _throughput(record: Record) -> Table:
    title = f"Throughput, median of {record['repeats']}"
    table = _table(title, "work", "requests", "tokens/s", "at most", "of that", "host", "cores")
    for one in record["results"]:
        limit = one["limit_tokens_per_second"]
        bounds = (f"{limit:,.1f} by {one['limit_by']}", f"{one['of_limit']:.2f}") if limit else ("unknown", "-")
        rate = f"{one['tokens_per_second']:,.1f} {one['counted']}"
        host = (f"{one['host_percent']:.1f} %", f"{one['cores_used']:.1f}")
        table.add_row(one["work"]["name"], _requests(one["work"]), rate, *bounds, *host)
    return table


def _latency(record: Record) -> Table:
    table = _table("Latency in milliseconds", "work", "requests", "time", "p50", "p90", "p99", "max")
    for one in record["results"]:
        rows = [(name, one[key]) for name, key in LATENCIES.items() if one[key]]
        for i, (name, percentiles) in enumerate(rows):
            first = (one["work"]["name"], _requests(one["work"])) if i == 0 else ("", "")
            table.add_row(*first, name, *(f"{value:,.1f}" for value in percentiles.values()))
    return table


LATENCIES = {"to the first token": "first_token_ms", "between tokens": "between_tokens_ms", "end to end": "end_to_end_ms"}
_TABLES = {"throughput": _throughput, "latency": _latency}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
    return table


def _requests(work: Mapping[str, Any]) -> str:
    """How many at once, and each one's tokens in and out."""
    return f"{work['requests']} x {work['prompt_tokens']:,}+{work['output_tokens']:,}"
