"""What the peers' scripts share. It runs in each peer's own environment, so it needs the standard library alone."""
from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], int]
"""(prompts of one length, tokens that each draws) -> tokens drawn in all: greedy, to the end, nothing kept from earlier prompts."""
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Room:
    """What the largest work needs. tokens: of a request, prompt and answer. kv_tokens: of all requests at once."""

    tokens: int
    requests: int
    kv_tokens: int
    threads: int


@dataclass(frozen=True)
class Peer:
    """An engine. weights: what it can hold a model's weights in (bf16, int8, int4) -> what it calls that.

    convert(checkpoint, weights, to) writes its own format; None: it loads the checkpoint's folder. load(model, weights, room).
    """

    name: str
    version: Callable[[], str]
    weights: Mapping[str, str]
    load: Callable[[Path, str, Room], Generate]
    convert: Callable[[Path, str, Path], None] | None = None


def main(peer: Peer) -> None:
    """The script: `run` answers each work, of the command line or of a line of standard input, with a line of JSON."""
    parser = argparse.ArgumentParser(prog=peer.name)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--model", type=Path, required=True)
    for name, default in {"vocab": 500, "tokens": 2048, "requests": 48, "kv-tokens": 16384, "threads": os.cpu_count()}.items():
        run.add_argument(f"--{name}", type=int, default=default)
    run.add_argument("work", nargs="*", help="PROMPT:OUTPUT:REQUESTS; without any, one on each line of standard input")
    convert = commands.add_parser("convert")
    convert.add_argument("--checkpoint", type=Path, required=True)
    convert.add_argument("--to", type=Path, required=True)
    for command in (run, convert):
        command.add_argument("--weights", choices=peer.weights, default="bf16")
    args = parser.parse_args()
    if args.command == "run":
        _answer(peer, args)
    elif peer.convert is not None:
        peer.convert(args.checkpoint, args.weights, args.to)


def _answer(peer: Peer, args: argparse.Namespace) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; standard output is for answers
    start = time.perf_counter()
    generate = peer.load(args.model, args.weights, Room(args.tokens, args.requests, args.kv_tokens, args.threads))
    load_s = time.perf_counter() - start
    for work, tokens_per_s in _measured(generate, args.work or sys.stdin, args.vocab):
        found: dict[str, Any] = {
            "peer": peer.name, "version": peer.version(), "weights": args.weights, "work": work, "tokens_per_s": tokens_per_s,
            "load_s": load_s, "peak_bytes": peak_bytes(),
        }
        print(json.dumps(found), file=answers)


def _measured(generate: Generate, works: Iterable[str], vocab: int) -> Iterator[tuple[str, float]]:
    """(work, tokens per second of its whole run): output tokens, or prompt tokens where each request draws one."""
    warm: set[str] = set()
    draw = random.Random(0)
    for work in map(str.strip, works):
        prompt_tokens, output_tokens, requests = map(int, work.split(":"))

        def prompts(tokens: int = prompt_tokens, count: int = requests) -> Prompts:
            return [[draw.randrange(vocab) for _ in range(tokens)] for _ in range(count)]

        if work not in warm:
            generate(prompts(), min(WARM_UP_TOKENS, output_tokens))
            warm.add(work)
        asked = prompts()
        start = time.perf_counter()
        drawn = generate(asked, output_tokens)
        seconds = time.perf_counter() - start
        if drawn != requests * output_tokens:
            raise SystemExit(f"work {work} needs {requests * output_tokens} tokens; {drawn} were drawn")
        yield work, requests * (prompt_tokens if output_tokens == 1 else output_tokens) / seconds


def peak_bytes() -> int | None:
    """The most memory that this process had resident so far; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(found["VmHWM"].split()[0])
