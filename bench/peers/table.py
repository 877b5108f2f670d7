"""A comparison's record as a table: medians, ratios of neighbouring runs, fractions of the machine's limit; in Markdown."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A peer beside us: medians over rounds. ratio: ours over the peer's, of runs one after the other; None: it failed.

    limit: what the machine could do around our run; of_limit: ours over it, run by run.
    """

    weights: str
    work: str
    peer: str
    version: str
    tokens_per_s: float | None
    ours: float | None
    ratio: float | None
    limit: float | None
    of_limit: float | None
    load_s: float | None
    peak_bytes: int | None
    failed: str | None


def rows(record: Record) -> list[Row]:
    """By weights, work and peer, in the order in which they ran."""
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in record["runs"]:
        grouped.setdefault((run["weights"], run["work"], run["beside"]), []).append(run)
    return [_row(*key, runs) for key, runs in grouped.items()]


def markdown(record: Record) -> str:
    limits = record["limits"]
    rates = [f"read {limits['read_bytes_per_second'] / 1e9:.1f} GB/s"] if limits["read_bytes_per_second"] else []
    rates += [f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in limits["flops"].items()]
    head = (
        f"{record['shape']} with random weights on {record['machine']['cpu']}, {record['threads']} threads, {record['date'][:10]}; "
        f"medians of {record['rounds']}. Limits in the same run: {', '.join(rates) or 'unknown'}."
    )
    lines = [
        "| weights | work | peer | tokens/s | ours | ours / peer | at most | ours of that | load s | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows(record)),
    ]
    failures = dict.fromkeys(f"- {row.weights}, {row.failed}" for row in rows(record) if row.failed)
    return "\n".join([head, "", *lines, *(["", *failures] if failures else [])]) + "\n"


def _row(weights: str, work: str, peer: str, runs: list[Mapping[str, Any]]) -> Row:
    theirs = {run["round"]: run for run in runs if run["peer"] == peer}
    us = {run["round"]: run for run in runs if run["peer"] == "ours"}
    failed = next((f"{run['peer']}: {run['failed']}" for run in runs if run["failed"]), None)
    good = [run for run in theirs.values() if not run["failed"]]
    bounded = [(run["tokens_per_s"], run["bound"]["tokens_per_second"]) for run in us.values() if run["bound"] and not run["failed"]]
    pairs = [(us[turn], run) for turn, run in theirs.items() if not run["failed"] and not us[turn]["failed"]]
    return Row(
        weights, work, peer, version=good[-1]["version"] if good else "",
        tokens_per_s=_median([run["tokens_per_s"] for run in good]),
        ours=_median([run["tokens_per_s"] for run in us.values() if not run["failed"]]),
        ratio=_median([one["tokens_per_s"] / other["tokens_per_s"] for one, other in pairs]),
        limit=_median([limit for _, limit in bounded]), of_limit=_median([rate / limit for rate, limit in bounded]),
        load_s=good[-1]["load_s"] if good else None, peak_bytes=good[-1]["peak_bytes"] if good else None, failed=failed,
    )


def _line(row: Row) -> str:
    peak = row.peak_bytes / 1e9 if row.peak_bytes else None
    figures = [(row.tokens_per_s, ",.1f"), (row.ours, ",.1f"), (row.ratio, ".2f"), (row.limit, ",.1f"), (row.of_limit, ".2f"),
               (row.load_s, ".1f"), (peak, ".2f")]
    told = ["-" if value is None else format(value, shape) for value, shape in figures]
    return "| " + " | ".join([row.weights, row.work, f"{row.peer} {row.version}".strip(), *told]) + " |"


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
