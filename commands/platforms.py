"""`inferplane platforms`: every registered platform, usable or not, and which kernels a model would get."""
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..platforms.registry import Registered

EXAMPLES = """\
examples:
  inferplane platforms
  inferplane platforms --json
  inferplane platforms --platform cpu --model ./Llama-3.2-1B
  inferplane platforms --matrix             what each platform has shown, feature by feature, and at which grade
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "platforms", help="list the platforms, and the kernels that a model gets", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="List every installed platform: whether it is usable here, why, and what to do about it. "
                    "With --model, also the resolution table: which kernel serves each op, and why others were passed over.",
    )
    settings.add_engine(parser)
    parser.add_argument("--matrix", action="store_true", help="what the conformance runs kept with the suite have shown, as markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..platforms import registry

    if args.matrix:
        return _matrix(args.json)
    rows = registry.listing()
    choices = settings.resolution(args) if args.model is not None else None
    if args.json:
        told: dict[str, Any] = {"platforms": [asdict(row) for row in rows]}
        if choices is not None:
            told["kernels"] = choices
        print(json.dumps(told, indent=2))
        return 0

    sys.stdout.write(_tables(rows, choices, args.model))
    return 0


def _matrix(as_json: bool) -> int:
    from ..conformance import matrix, summary

    kept = [summary.read(path) for path in sorted(summary.RESULTS.glob("*.json"))]
    if as_json:
        print(json.dumps([{"platform": one.platform, "judgement": asdict(one.judgement), "rows": one.rows} for one in kept], indent=2))
    else:
        sys.stdout.write(matrix.markdown(matrix.matrix(kept), kept) + "\n")
    return 0


def _tables(rows: list[Registered], choices: list[dict[str, Any]] | None, model: str | None) -> str:
    """Captured first: when a reader leaves, rich would end the process by itself."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    with console.capture() as captured:
        title = "Platforms, in the order in which auto looks"
        table = Table("platform", "usable", "why", "what to do", "several devices", title=title, title_justify="left")
        for row in rows:
            table.add_row(row.name, "yes" if row.usable else "no", row.reason, row.remedy, row.parallel or "no")
        console.print(table, markup=False)
        if choices is not None:
            table = Table("op", "spec", "kernel", "calls", "devices", "passed over", title=f"Kernels for {model}", title_justify="left")
            for choice in choices:
                passed = "\n".join(f"{name}: {reason}" for name, reason in choice["passed"].items())
                table.add_row(choice["op"], choice["spec"], choice["kernel"], str(choice["calls"]), choice["devices"], passed)
            console.print(table, markup=False)
    return captured.get()
