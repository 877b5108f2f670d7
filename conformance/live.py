"""A run as a person sees it: a live table by level, failures with the command that replays each, and the verdict."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from .bundle import Judgement
from .case import GOOD, Verdict
from .matrix import LEVELS
from .runner import Result, replay
from .summary import KernelSummary

SHOWN_FAILURES = 20
Rows = dict[str, Counter[Verdict]]
"""What a table counts: a level or a family -> its verdicts."""


def watch(stream: Iterable[Result], total: int, platform: str, console: Console) -> list[Result]:
    """Collect the results under a live table; failures are told as they come, the first of them in full."""
    results: list[Result] = []
    rows: Rows = defaultdict(Counter)
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    task, failures = bar.add_task("", total=total), 0
    with Live(get_renderable=lambda: Group(_table(rows, "level"), bar), console=console, transient=True, refresh_per_second=4):
        for result in stream:
            results.append(result)
            rows[f"L{result.level} {LEVELS[result.level]}"][result.verdict] += 1
            bar.advance(task)
            failures += result.verdict not in GOOD
            if result.verdict not in GOOD and failures <= SHOWN_FAILURES:
                told = escape(f"{result.case}\n    {result.detail}\n    {replay(platform, result.case, result.target)}")
                console.print(f"[red]{result.verdict}[/] {told}", highlight=False, soft_wrap=True)
    return results


def tell(platform: str, results: Sequence[Result], found: Judgement, folder: Path, console: Console) -> None:
    """What a run amounts to."""
    rows: Rows = defaultdict(Counter)
    for one in results:
        rows[one.feature][one.verdict] += 1
    table = _table(rows, "family")
    table.title, table.title_justify = f"Conformance of {platform}", "left"
    console.print(table)
    lines = [f"{one.case}: {one.detail}" for one in results if one.verdict is Verdict.PASS and one.detail]
    lines.append(f"{'PASSED' if found.passed else 'FAILED'}: {', '.join(f'{n} {verdict}' for verdict, n in found.counts.items())}")
    lines += [f"  {reason}" for reason in found.reasons[:SHOWN_FAILURES]]
    if len(found.reasons) > SHOWN_FAILURES:
        lines.append(f"  and {len(found.reasons) - SHOWN_FAILURES} more, in {folder}")
    lines.append("a certificate: whole, and every result at grade device" if found.certificate else
                 f"no certificate: {'; '.join((*found.withheld, *['not everything passed'] * (not found.passed)))}")
    for line in [*lines, f"bundle: {folder}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def tell_kernels(kernels: Sequence[KernelSummary], console: Console) -> None:
    """What kernels take of each chip."""
    table = Table("kernel", "chip", *(Column(name, justify="right") for name in ("configurations", "registers", "shared bytes", "spilled")),
                  title="Kernels, and the most that one configuration takes", title_justify="left", show_edge=False)
    for one in kernels:
        spilled = f"[red]{one.spilled_bytes} bytes[/]" if one.spilled_bytes else "0"
        table.add_row(one.kernel, one.target, f"{one.configurations:,}{f' [red]({one.refused} refused)[/]' if one.refused else ''}",
                      str(one.registers), f"{one.shared_bytes:,}", spilled)
    console.print(table)


def _table(rows: Rows, heading: str) -> Table:
    """A column for each verdict that occurs."""
    verdicts = [verdict for verdict in Verdict if any(row[verdict] for row in rows.values())]
    table = Table(heading, show_edge=False)
    for verdict in verdicts:
        table.add_column(str(verdict), justify="right", style="" if verdict in GOOD else "red")
    for group, row in rows.items():
        table.add_row(group, *(f"{row[verdict]:,}" if row[verdict] else "" for verdict in verdicts))
    return table
