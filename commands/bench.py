"""`inferplane bench`: measures a model, or each op alone, on a platform, against what the machine can do at most."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import settings

WORKS = {"throughput": "decode1,prefill1k,batch16,batch48", "latency": "decode1,batch16"}
EXAMPLES = """\
examples:
  inferplane bench throughput --shape llama-1b --platform cpu
  inferplane bench throughput --model ./Llama-3.2-1B --work decode1,128:64:16 --output figures.json
  inferplane bench latency --work 256:64:4 --repeats 5 --json
  inferplane bench ops --platform acme --op linear,attention
"""
WORK_HELP = """\
work: decode1 (16 tokens in, 64 out), prefill1k (1,024 in, 1 out), batch16 and batch48 (that many requests at once,
128 in, 64 out), or PROMPT:OUTPUT:REQUESTS. Prompts are random ids; answers are greedy and never end early; the prefix
cache is off.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="measure throughput, latency and single ops", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a model on a platform, and what the machine could do at most, in the same run.",
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    _add(kinds, "throughput", "tokens per second of whole runs, prefill included, and the fraction of the machine's limit",
         "times each work is measured; the figure is the median (default: 3)")
    _add(kinds, "latency", "time to the first token, between tokens and to the end, with a fixed number of requests at once",
         "requests that each client sends, one after the other (default: 3)")
    _add_ops(kinds)


def _add_ops(kinds: Any) -> None:
    told = "each op's time in the shapes of real models, and the fraction of the machine's limit"
    parser = kinds.add_parser("ops", help=told, description=f"Measure {told}. Outputs of the timed runs are checked.")
    parser.add_argument("--platform", metavar="P", required=True, help="a platform, with options after a colon")
    parser.add_argument("--op", metavar="OP,...", default="", help="only these, such as linear,attention (default: all)")
    parser.add_argument("--dtype", metavar="D", help="what to compute in (default: what the platform prefers)")
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the record in a file, too")
    parser.set_defaults(run=run_ops)


def run_ops(args: argparse.Namespace) -> int:
    from ..bench.ops import run_ops
    from ..core.progress import bar

    _check(args.output)
    with bar(sys.stderr.isatty()) as progress:
        record = run_ops(args.platform, [op.strip() for op in args.op.split(",") if op.strip()], args.dtype, progress or _tell)
    _give(record, args)
    return 1 if any(one["wrong"] for one in record["results"]) else 0


def _add(kinds: Any, kind: str, told: str, repeats: str) -> None:
    parser = kinds.add_parser(
        kind, help=told, description=f"Measure {told}.", epilog=WORK_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", metavar="NAME",
                        help="random weights in a named shape, instead of --model: llama-1b, qwen2.5-0.5b or tiny")
    parser.add_argument("--work", metavar="W,...", default=WORKS[kind],
                        help="what to measure, in this order (default: %(default)s)")
    parser.add_argument("--repeats", type=int, metavar="N", default=3, help=repeats)
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the prompts and the random weights (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the record in a file, too")
    settings.add_engine(parser)
    parser.set_defaults(run=run, kind=kind)


def run(args: argparse.Namespace) -> int:
    from ..bench.run import Plan, run_latency, run_throughput
    from ..bench.work import parse_works
    from ..core.progress import bar

    plan = Plan(parse_works(args.work), args.repeats, args.shape, args.seed, settings.names(args))
    _check(args.output)
    measure = {"throughput": run_throughput, "latency": run_latency}[args.kind]
    with bar(sys.stderr.isatty()) as progress:
        record = measure(plan, progress or _tell)
    _give(record, args)
    return 0


def _give(record: dict[str, Any], args: argparse.Namespace) -> None:
    if args.output is not None:
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(record, indent=1))
    else:
        from rich.console import Console

        from ..bench.report import show

        show(record, Console())


def _tell(what: str, done: int, total: int) -> None:
    """Progress where nobody watches: a line for each thing that is done."""
    if done == total:
        print(f"inferplane bench: {what}: done", file=sys.stderr)


def _check(output: Path | None) -> None:
    """Before minutes of measuring, not after them."""
    from ..errors import ConfigError

    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        found = "it is a folder" if output.is_dir() else "its folder does not exist"
        raise ConfigError(f"--output {output} cannot be written: {found}. Give a file.")
