"""A record as a table for a person. A record is plain data, so one that was saved shows just the same."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]


def show(record: Record, console: Console) -> None:
    for line in headline(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_TABLES[record["kind"]](record))


def headline(record: Record) -> list[str]:
    """The model where there is one, what computed it, and what that can do at most."""
    if record["kind"] == "accuracy":
        return [f"{record['of']} on {record['platform']['name']}: {record['tokens']:,} tokens, {record['asked']:,} of them asked for"]
    if record["kind"] == "serve":
        return _served(record)
    machine, platform, limits = (record[name] for name in ("machine", "platform", "limits"))
    rates = [f"read {limits['read_bytes_per_second'] / 1e9:.1f} GB/s"] if limits["read_bytes_per_second"] else []
    rates += [f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in limits["flops"].items()]
    return [
        *([_model(record)] if "model" in record else []),
        f"{platform['name']} on {machine['cpu']}, {machine['cores']} cores; load average {machine['load_average'][0]:.1f}",
        f"limits by {limits['source']}: {', '.join(rates) or 'unknown'}",
    ]


def _model(record: Record) -> str:
    model, peak = record["model"], record.get("peak_bytes")
    weights = "random weights" if model["random_weights"] else "its own weights"
    quantized = f" and {record['settings']['quantization']}" if record["settings"].get("quantization") else ""
    spent = f"loaded in {record['load_seconds']:.1f} s" + (f", at most {peak / 1e9:.2f} GB of memory" if peak else "")
    return f"{model['name']}: {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']}{quantized}, {weights}; {spent}"


def _served(record: Record) -> list[str]:
    """What was asked of the server, and what it gave. Its latencies are the table's."""
    server, [one] = record["server"], record["results"]
    where = f"{record['machine']['cpu']}, {record['machine']['cores']} cores" if server["own"] else "a server that was running"
    rates = (one["requests_per_second"], one["output_tokens_per_second"], one["total_tokens_per_second"])
    lines = [
        f"{server['model']} on {where}; {record['load']['described']}",
        f"{one['completed']:,} of {one['requests']:,} requests ended well in {one['seconds']:.1f} s"
        + (f", {one['unfinished']:,} had not ended" if one["unfinished"] else "") + ("; interrupted" if record["interrupted"] else ""),
        "{:,.2f} requests/s, {:,.1f} output tokens/s, {:,.1f} with prompts".format(*rates),
    ]
    if good := one["goodput"]:
        limits = [f"{name} {good[key]:g} ms" for name, key in (("first token", "ttft_ms"), ("mean between tokens", "itl_ms")) if good[key]]
        lines.append(f"goodput {good['requests_per_second']:,.2f} requests/s: {100 * good['share']:.1f} % kept {', '.join(limits)}")
    for kind, count in one["errors"].items():
        said = one["errors_said"].get(kind)
        lines.append(f"{count:,} x {kind}{': ' + said if said else ''}")
    spent = [f"client {one['client_cpu_seconds']:.2f} s ({one['client_cores']:.2f} cores)"]
    spent += [f"server {one['server_cpu_seconds']:.2f} s"] if one["server_cpu_seconds"] is not None else []
    late = f"; requests left {one['late_ms']['p99']:.1f} ms late (p99)" if one["late_ms"] else ""
    return [*lines, f"processor time: {', '.join(spent)}{late}"]


def _serve(record: Record) -> Table:
    table = _table("Latency in milliseconds", "time", "mean", "p50", "p90", "p95", "p99", "max", left=1)
    for name, key in SERVE_LATENCIES.items():
        if found := record["results"][0][key]:
            table.add_row(name, *(f"{found[one]:,.1f}" for one in ("mean", "p50", "p90", "p95", "p99", "max")))
    return table


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


def _ops(record: Record) -> Table:
    """A section for each op and kernel."""
    table = _table(f"Ops in {record['dtype']}, one call", "", "ms", "MB", "GFLOP", "GB/s", "GFLOP/s", "of limit", left=1)
    table.columns[0].no_wrap, table.columns[0].width, section = False, 25, ""
    for one in record["results"]:
        op, _, what = one["work"].partition(" ")
        heading = f"{op}: {one.get('kernel') or ('refused' if one['refused'] else 'WRONG')}"
        if heading != section:
            section = heading
            table.add_row(Text(heading, "bold"))
        if why := one["refused"] or one["wrong"]:
            table.add_row(Text(f"  {what}: {why}", "" if one["refused"] else "red"))
            continue
        seconds, size, flops = one["seconds"], one["bytes"], one["flops"]
        products = (f"{flops / 1e9:,.3f}", f"{flops / seconds / 1e9:,.0f}") if flops else ("", "")
        fraction = "unknown" if one["of_limit"] is None else f"{one['of_limit']:.2f} {one['by']}"
        memory = (f"{size / 1e6:,.2f}", f"{size / seconds / 1e9:,.1f}")
        table.add_row(f"  {what}", f"{1e3 * seconds:,.3f}", memory[0], products[0], memory[1], products[1], fraction)
    return table


def _accuracy(record: Record) -> Table:
    """Against float32, the first row."""
    table = _table("Accuracy", "weights", "perplexity", "more", "logit error", "divergence", "same choice", left=1)
    first = record["results"][0]["perplexity"]
    for one in record["results"]:
        found = one["perplexity"]
        perplexity = (f"{found:.4f}", f"{100 * (found / first - 1):+.2f} %") if found else ("-", "-")
        error, same = f"{100 * one['logit_error']:.3f} %", f"{100 * one['same_choice']:.2f} %"
        table.add_row(one["name"], *perplexity, error, f"{one['divergence']:.2e}", same)
    return table


LATENCIES = {"to the first token": "first_token_ms", "between tokens": "between_tokens_ms", "end to end": "end_to_end_ms"}
SERVE_LATENCIES = {
    "to the first token": "ttft_ms", "between tokens": "itl_ms", "between, mean of each": "mean_itl_ms", "end to end": "end_to_end_ms",
}
_TABLES = {
    "throughput": _throughput, "sweep": _throughput, "latency": _latency, "serve": _serve, "ops": _ops, "accuracy": _accuracy,
}


def _table(title: str, *columns: str, left: int = 2) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return table


def _requests(work: Mapping[str, Any]) -> str:
    """How many at once, and each one's tokens in and out."""
    least = f"{work['least_tokens']:,}-" if work.get("least_tokens") else ""
    return f"{work['requests']} x {least}{work['prompt_tokens']:,}+{least}{work['output_tokens']:,}"
