"""`inferplane bench`: measures a model, or each op alone, on a platform, against what the machine can do at most."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bench_serve, records, settings

if TYPE_CHECKING:
    from ..bench.work import Work

CONCURRENCY = "1,2,4,8,16,32,48"
WORKS = {"throughput": "decode1,prefill1k,batch16,batch48", "latency": "decode1,batch16"}
EXAMPLES = """\
examples:
  inferplane bench throughput --shape llama-1b --platform cpu
  inferplane bench throughput --model ./Llama-3.2-1B --work decode1,128:64:16 --output figures.json
  inferplane bench latency --work 256:64:4 --repeats 5 --json
  inferplane bench sweep --shape llama-1b --platform cpu --concurrency 1,4,16 --plot sweep.svg
  inferplane bench serve --url http://127.0.0.1:8000 --rate 4 --duration 60 --slo-ttft-ms 500
  inferplane bench ops --platform acme --op linear,attention
  inferplane bench accuracy --scheme int4:g64:float16
"""
WORK_HELP = """\
work: decode1 (16 tokens in, 64 out), prefill1k (1,024 in, 1 out), batch16 and batch48 (that many requests at once,
128 in, 64 out), nano-vllm (its benchmark: 256 requests, 100 to 1,024 in and out, drawn at temperature 0.6), or
PROMPT:OUTPUT:REQUESTS. Prompts are random ids; answers are greedy and never end early; the prefix cache is off.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="measure throughput, latency, servers and single ops", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a model on a platform, and what the machine could do at most, in the same run.",
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    _add(kinds, "throughput", "tokens per second of whole runs, prefill included, and the fraction of the machine's limit",
         "times each work is measured; the figure is the median (default: 3)")
    _add(kinds, "latency", "time to the first token, between tokens and to the end, with a fixed number of requests at once",
         "requests that each client sends, one after the other (default: 3)")
    _add_sweep(kinds)
    bench_serve.add(kinds)
    _add_ops(kinds)
    _add_accuracy(kinds)


def _add_sweep(kinds: Any) -> None:
    told = "output tokens per second against the number of requests at once, under the machine's limit"
    parser = kinds.add_parser("sweep", help=told, description=f"Measure {told}.")
    parser.add_argument("--concurrency", metavar="N,...", default=CONCURRENCY, help="requests at once (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", default=128, help="of each request (default: %(default)s)")
    parser.add_argument("--output-tokens", type=int, metavar="N", default=64, help="of each request (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it into an .svg or .png file; needs matplotlib")
    _add_measured(parser, "times each number is measured; the figure is the median (default: 3)")
    parser.set_defaults(run=run_sweep)


def run_sweep(args: argparse.Namespace) -> int:
    from ..bench.sweep import check_plot, draw, sweep_works

    works = sweep_works(args.concurrency, args.prompt_tokens, args.output_tokens)
    if args.plot is not None:
        records.check_file("--plot", args.plot)
        check_plot(args.plot)
    record = _measure(args, works, "sweep")
    if args.plot is not None:
        draw(record, args.plot)
    return 0


def _add_ops(kinds: Any) -> None:
    told = "each op's time in the shapes of real models, and the fraction of the machine's limit"
    parser = kinds.add_parser("ops", help=told, description=f"Measure {told}. Outputs of the timed runs are checked.")
    parser.add_argument("--platform", metavar="P", required=True, help="a platform, with options after a colon")
    parser.add_argument("--op", metavar="OP,...", default="", help="only these, such as linear,attention (default: all)")
    parser.add_argument("--dtype", metavar="D", help="what to compute in (default: what the platform prefers)")
    records.add(parser)
    parser.set_defaults(run=run_ops)


def run_ops(args: argparse.Namespace) -> int:
    from ..bench.ops import run_ops
    from ..core.progress import bar

    records.check(args)
    with bar(sys.stderr.isatty()) as progress:
        record = run_ops(args.platform, [op.strip() for op in args.op.split(",") if op.strip()], args.dtype, progress or _tell)
    records.give(record, args)
    return 1 if any(one["wrong"] for one in record["results"]) else 0


def _add_accuracy(kinds: Any) -> None:
    told = "perplexity of the embedded model and the error of its logits in int8, int4 and peers' formats, against float32"
    parser = kinds.add_parser("accuracy", help=told, description=f"Measure {told}.")
    parser.add_argument("--platform", metavar="P", default="reference", help="a platform (default: %(default)s)")
    parser.add_argument("--shape", metavar="NAME", help="random weights in a named shape instead, cut to two layers: llama-1b")
    parser.add_argument("--scheme", metavar="S", action="append", default=[], help="one more scheme, such as int4:g64; repeatable")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the random weights (default: 0)")
    records.add(parser)
    parser.set_defaults(run=run_accuracy)


def run_accuracy(args: argparse.Namespace) -> int:
    from ..bench.accuracy import run_accuracy
    from ..core.progress import bar

    records.check(args)
    with bar(sys.stderr.isatty()) as progress:
        record = run_accuracy(args.platform, shape=args.shape, schemes=args.scheme, seed=args.seed, progress=progress or _tell)
    records.give(record, args)
    return 0


def _add(kinds: Any, kind: str, told: str, repeats: str) -> None:
    parser = kinds.add_parser(
        kind, help=told, description=f"Measure {told}.", epilog=WORK_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", metavar="W,...", default=WORKS[kind],
                        help="what to measure, in this order (default: %(default)s)")
    _add_measured(parser, repeats)
    parser.set_defaults(run=run, kind=kind)


def _add_measured(parser: argparse.ArgumentParser, repeats: str) -> None:
    """What every kind that measures a model takes."""
    parser.add_argument("--shape", metavar="NAME",
                        help="random weights in a named shape, instead of --model: llama-1b, llama-8b, qwen2.5-0.5b, qwen3-0.6b or tiny")
    parser.add_argument("--repeats", type=int, metavar="N", default=3, help=repeats)
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the prompts and the random weights (default: 0)")
    records.add(parser)
    settings.add_engine(parser)


def run(args: argparse.Namespace) -> int:
    from ..bench.work import parse_works

    _measure(args, parse_works(args.work), args.kind)
    return 0


def _measure(args: argparse.Namespace, works: Sequence[Work], kind: str) -> dict[str, Any]:
    from ..bench.run import Plan, run_latency, run_throughput
    from ..core.progress import bar

    plan = Plan(works, args.repeats, args.shape, args.seed, settings.names(args))
    records.check(args)
    with bar(sys.stderr.isatty()) as progress:
        told = progress or _tell
        record = run_latency(plan, told) if kind == "latency" else run_throughput(plan, told, kind)
    records.give(record, args)
    return record


def _tell(what: str, done: int, total: int) -> None:
    """Progress where nobody watches: a line for each thing that is done."""
    if done == total:
        print(f"inferplane bench: {what}: done", file=sys.stderr)
