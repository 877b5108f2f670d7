"""`inferplane bench`: hands its arguments to the benchmarks."""
from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    # No option prefix here, so that whatever follows is the benchmark's own, `--help` included.
    parser = commands.add_parser("bench", help="measure throughput and latency", add_help=False, prefix_chars="\0")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..bench import main

    code: int = main(args.arguments)
    return code
