"""`python -m inferplane.bench.peers.servers`: what HTTP costs. This engine offline, its server and vLLM's server, the same load in turns.

Throughput: so many requests at once, the tokens of the whole run over its time. Time to the first token: one request at a time.
Every engine loads the same checkpoint, keeps no prefixes, and has the same threads; one computes at a time.
"""
from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import ConfigError, InferplaneError
from ..machine import describe_machine, describe_versions, today
from ..serve import Target, run_serve
from ..serve_figures import Slo
from ..serve_load import Load
from ..serve_server import OwnServer, own_server
from ..work import Work
from . import vllm_cpu
from .compare import Comparison, Engine, engine
from .make_model import make_model
from .ours import PEER as OURS
from .protocol import Room

FORMAT = 1
WEIGHTS = "bf16"
FIRST_TOKEN_REQUESTS = 7
"""One after the other, of which the median counts."""
HEALTH_SECONDS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inferplane.bench.peers.servers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", default="llama-1b", help="default: %(default)s")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="for the checkpoint")
    parser.add_argument("--peer", action="store_true", help="vLLM's server, too")
    parser.add_argument("--python", type=Path, default=Path(".nox/peers-vllm/bin/python"), metavar="PATH",
                        help="vLLM's interpreter (default: that of the nox session peers-vllm)")
    parser.add_argument("--requests", type=int, default=48, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--output-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="of every engine (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the record")
    args = parser.parse_args()
    many = Work(f"batch{args.requests}", args.prompt_tokens, args.output_tokens, args.requests)
    asked = Comparison(args.shape, ["vllm"] if args.peer else [], [many], [WEIGHTS], args.rounds, args.threads, args.models,
                       {"vllm": args.python})
    try:
        make_model(asked.shape, asked.checkpoint)
        record = _compare(asked, many)
    except InferplaneError as error:
        print(f"inferplane: {error}", file=sys.stderr)
        return 1
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(_table(record))
    return 0


def _compare(asked: Comparison, many: Work) -> dict[str, Any]:
    room = Room(many.length_tokens, many.requests, many.requests * many.length_tokens, asked.threads)
    options = ["--model", str(asked.checkpoint), "--platform", "cpu", "--threads", str(room.threads), "--no-prefix-caching",
               "--max-model-len", str(room.tokens), "--max-num-seqs", str(room.requests), "--kv-cache-memory-gb", str(vllm_cpu.KV_GIB)]
    runs = []
    with ExitStack() as opened:
        offline = opened.enter_context(engine(asked, OURS.name, WEIGHTS))
        servers = {"ours": opened.enter_context(own_server(options))}
        servers |= {peer: opened.enter_context(_vllm_server(asked, room)) for peer in asked.peers}
        for turn in range(asked.rounds):
            found = [{"who": "offline", **_offline(offline, many)}]
            found += [{"who": who, **_served(server, many)} for who, server in servers.items()]
            for one in found:
                runs.append({"round": turn, **one})
                print(f"servers: round {turn + 1}, {one['who']}: {one['tokens_per_s']:,.1f} tokens/s, first token of one request after "
                      f"{one['first_token_ms']:.1f} ms", file=sys.stderr, flush=True)
    return {
        "format": FORMAT, "kind": "servers", "date": today(), "machine": describe_machine(), "versions": describe_versions(),
        "shape": asked.shape, "rounds": asked.rounds, "threads": asked.threads, "load": many.name, "prompt_tokens": many.prompt_tokens,
        "output_tokens": many.output_tokens, "runs": runs,
    }


def _offline(ours: Engine, many: Work) -> dict[str, float]:
    first = Work("first token", many.prompt_tokens, 1, 1)
    times = [1e3 * many.prompt_tokens / _measured(ours, first)["tokens_per_s"] for _ in range(FIRST_TOKEN_REQUESTS)]
    return {"tokens_per_s": _measured(ours, many)["tokens_per_s"], "first_token_ms": median(times)}


def _measured(ours: Engine, work: Work) -> Mapping[str, Any]:
    found = ours.measure(work)
    if found["failed"]:
        raise ConfigError(f"this engine, offline, ended: {found['failed']}")
    return found


def _served(server: OwnServer, many: Work) -> dict[str, float]:
    """cpu_seconds: of the client and of all of the server's processes, while the throughput was measured."""
    prompt, answer = (many.prompt_tokens,) * 2, (many.output_tokens,) * 2
    one = Load(concurrency=1, requests=FIRST_TOKEN_REQUESTS, prompt_tokens=prompt, output_tokens=(1, 1), seed=secrets.randbits(31))
    all_at_once = Load(concurrency=many.requests, requests=many.requests, prompt_tokens=prompt, output_tokens=answer,
                       seed=secrets.randbits(31))
    first, found = _figures(server, one), _figures(server, all_at_once)
    return {
        "tokens_per_s": found["output_tokens_per_second"], "first_token_ms": first["ttft_ms"]["p50"],
        "gap_ms": found["mean_itl_ms"]["p50"], "client_cpu_seconds": found["client_cpu_seconds"],
        "server_cpu_seconds": found["server_cpu_seconds"], "seconds": found["seconds"],
    }


def _figures(server: OwnServer, load: Load) -> Mapping[str, Any]:
    [found] = run_serve(load, Slo(), Target(server.url), tell=lambda progress: None, own=server)["results"]
    if found["errors"]:
        raise ConfigError(f"{server.url} answered with errors: {found['errors_said'] or found['errors']}")
    return found


@contextmanager
def _vllm_server(asked: Comparison, room: Room) -> Iterator[OwnServer]:
    """When it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", asked.models / asked.shape / "vllm-server.log"
    variables = [f"{name}={value}" for name, value in vllm_cpu.environment(room).items()]
    command = [str(asked.pythons["vllm"].absolute()), *vllm_cpu.server(asked.checkpoint.resolve(), room, port)]
    with log.open("wb") as said:
        process = subprocess.Popen(["env", *variables, *command], stdout=said, stderr=said, start_new_session=True)
    server = OwnServer(process, log)
    try:
        server.wait(lambda: url if _is_healthy(url) else None)
        yield server
    finally:
        server.end()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HEALTH_SECONDS):
            return True
    except OSError:
        return False


def _table(record: Mapping[str, Any]) -> str:
    """Medians; costs beside the offline run of the same round."""
    rounds = range(record["rounds"])
    by = {(run["who"], run["round"]): run for run in record["runs"]}
    lines = ["| who | tokens/s | beside offline | first token ms | beside offline ms | client's cores |", "|---|---|---|---|---|---|"]
    for who in dict.fromkeys(run["who"] for run in record["runs"]):
        pairs = [(by[who, turn], by["offline", turn]) for turn in rounds]
        share = median(one["tokens_per_s"] / other["tokens_per_s"] for one, other in pairs)
        later = median(one["first_token_ms"] - other["first_token_ms"] for one, other in pairs)
        rate, first = (median(one[figure] for one, _ in pairs) for figure in ("tokens_per_s", "first_token_ms"))
        cores = [one["client_cpu_seconds"] / one["seconds"] for one, _ in pairs if "seconds" in one]
        client = f"{median(cores):.2f}" if cores else "-"
        lines.append(f"| {who} | {rate:,.1f} | {share:.3f} | {first:.1f} | {later:+.1f} | {client} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
