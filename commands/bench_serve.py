"""`inferplane bench serve`: loads a server, one that runs or one of its own, and reports what its clients saw."""
from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import records, settings

if TYPE_CHECKING:
    from ..bench.serve import Progress, Target
    from ..bench.serve_load import Load
    from ..bench.serve_server import OwnServer

LINE_SECONDS = 10.0
"""Between lines of progress where no terminal shows it."""
INTERRUPTED = 130
LOCAL = "http://127.0.0.1"
EPILOG = """\
examples:
  inferplane bench serve --concurrency 16                                   the embedded model, a server of its own
  inferplane bench serve --shape llama-1b --platform cpu --concurrency 48 --requests 48
  inferplane bench serve --url http://127.0.0.1:8000 --rate 4 --duration 60 --slo-ttft-ms 500 --slo-itl-ms 50
  inferplane bench serve --rate 1 --turns 4 --think-seconds 2 --shared-prefix 512 --json chats.json --plot chats.svg

Prompts are random token ids, answers greedy and never end early. Times to the first token and to the end count from
when a request was due, so that a client that falls behind hides nothing. Ctrl-C ends a run and reports what was measured.
Exit codes: 0 measured, 1 no request ended well, or it could not begin, 2 wrong usage, 130 interrupted.
"""


def add(kinds: Any) -> None:
    told = "a server's time to the first token, between tokens and to the end, its rates and goodput under load"
    parser = kinds.add_parser(
        "serve", help=told, description=f"Measure {told}.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("server", "one that runs; without --url one is started for the run, with the engine's options below")
    server.add_argument("--url", metavar="URL", help="for instance http://127.0.0.1:8000; then --model is the name of a model there")
    server.add_argument("--api-key", metavar="K", help="its key. INFERPLANE_API_KEY is safer: options are seen by other users")
    server.add_argument("--timeout", type=float, default=600.0, metavar="S", help="for an answer's next bytes (default: %(default)g)")
    server.add_argument("--no-token-ids", action="store_true",
                        help="do not ask for the answers' ids, for servers that refuse to be; then a piece counts as a token")
    server.add_argument("--shape", metavar="NAME", help="random weights in a named shape: llama-1b, qwen2.5-0.5b or tiny")
    load = parser.add_argument_group("load")
    loop = load.add_mutually_exclusive_group(required=True)
    loop.add_argument("--rate", type=float, metavar="R", help="an open loop: conversations per second, at random times (Poisson)")
    loop.add_argument("--concurrency", type=int, metavar="N", help="a closed loop: clients, each of which asks when it was answered")
    load.add_argument("--requests", type=int, metavar="N", help="in all (default: 100, where no --duration is given)")
    load.add_argument("--duration", type=float, metavar="S", help="seconds in which requests are sent; then those under way may end")
    load.add_argument("--prompt-tokens", default="128", metavar="N[-M]", help="of each turn (default: %(default)s)")
    load.add_argument("--output-tokens", default="64", metavar="N[-M]", help="of each answer (default: %(default)s)")
    load.add_argument("--shared-prefix", type=int, default=0, metavar="N", help="tokens with which every conversation begins")
    load.add_argument("--turns", type=int, default=1, metavar="N", help="of a conversation (default: %(default)s)")
    load.add_argument("--think-seconds", type=float, default=0.0, metavar="S", help="mean time between an answer and the next turn")
    load.add_argument("--vocab", type=int, default=500, metavar="N", help="prompts are made of ids below it (default: %(default)s)")
    load.add_argument("--seed", type=int, metavar="N", help="of prompts and times (default: another one in each run, so that no prompt "
                                                            "is in the server's prefix cache)")
    kept = parser.add_argument_group("figures")
    kept.add_argument("--slo-ttft-ms", type=float, metavar="MS", help="goodput counts requests whose first token came within it")
    kept.add_argument("--slo-itl-ms", type=float, metavar="MS", help="and whose mean time between tokens was within this")
    kept.add_argument("--plot", type=Path, metavar="FILE", help="draw it into an .svg or .png file; needs matplotlib")
    records.add(parser)
    settings.add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..bench.serve_load import Load, parse_tokens
    from ..errors import ConfigError

    try:
        from ..bench.serve import run_serve
        from ..bench.serve_figures import Slo
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench serve needs the package {error.name!r}. Install it: pip install 'inferplane[bench]'") from None
    load = Load(
        rate=args.rate, concurrency=args.concurrency, requests=args.requests, duration_seconds=args.duration,
        prompt_tokens=parse_tokens("--prompt-tokens", args.prompt_tokens),
        output_tokens=parse_tokens("--output-tokens", args.output_tokens), shared_prefix_tokens=args.shared_prefix, turns=args.turns,
        think_seconds=args.think_seconds, ids=args.vocab, seed=secrets.randbits(32) if args.seed is None else args.seed,
    )
    slo = Slo(args.slo_ttft_ms, args.slo_itl_ms)
    _check(args)
    with _target(args, load) as (target, own), _teller(load) as tell:
        record = run_serve(load, slo, target, tell, own)
    records.give(record, args)
    if args.plot is not None:
        from ..bench.serve_plot import draw

        draw(record, args.plot)
    if record["interrupted"]:
        return INTERRUPTED
    return 0 if record["results"][0]["completed"] else 1


def _check(args: argparse.Namespace) -> None:
    """Before minutes of measuring, not after them."""
    from ..errors import ConfigError

    records.check(args)
    if args.plot is not None:
        from ..bench.sweep import check_plot

        records.check_file("--plot", args.plot)
        check_plot(args.plot)
    if args.shape is not None and args.model is not None:
        raise ConfigError(f"both a model, {args.model!r}, and a shape, {args.shape!r}, were given. Give one of them.")
    if args.url is None and args.api_key is not None:
        raise ConfigError("--api-key opens a server that runs already, and no --url names one. Give --url, or leave the key out.")
    own = sorted(name for name in settings.names(args) if name != "model") + (["shape"] if args.shape else [])
    if args.url is not None and own:
        raise ConfigError(f"{', '.join(own)}: of a server that is started for the run, but --url names one that runs already. "
                          "Leave out one or the other.")


@contextmanager
def _target(args: argparse.Namespace, load: Load) -> Iterator[tuple[Target, OwnServer | None]]:
    from ..bench.serve import Target
    from ..bench.serve_server import own_server
    from ..core.env import Environment
    from ..core.progress import bar

    key = args.api_key or Environment.read().api_key
    target = Target(args.url or LOCAL, key, args.model if args.url else None, args.timeout, not args.no_token_ids)
    if args.url is not None:
        yield target, None
        return
    given = {"max_model_len": load.longest_tokens, "max_num_seqs": load.concurrency, **settings.names(args)}
    options = settings.options({name: value for name, value in given.items() if value is not None})
    with bar(sys.stderr.isatty()) as progress, own_server(options, shape=args.shape, progress=progress) as own:
        yield replace(target, url=own.url), own


@contextmanager
def _teller(load: Load) -> Iterator[Callable[[Progress], None]]:
    """Shows how far it is: on a terminal a line that changes, otherwise a line now and then."""
    if not sys.stderr.isatty():
        told = time.monotonic()

        def tell(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                print(f"inferplane bench: {_words(progress, load)}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda progress: live.update(Text(_words(progress, load), no_wrap=True, overflow="ellipsis"), refresh=True)


def _words(progress: Progress, load: Load) -> str:
    most = f" of {load.most_requests}" if load.most_requests else ""
    until = f" of {load.duration_seconds:g}" if load.duration_seconds else ""
    failed = sum(trip.error is not None for trip in progress.trips)
    tokens = sum(len(trip.arrivals) for trip in progress.trips)
    rate = tokens / max(progress.seconds, 1e-9)
    return (f"{progress.seconds:.0f}{until} s: {len(progress.trips)}{most} requests, {progress.running} under way, {failed} failed, "
            f"{rate:,.0f} tokens/s")
