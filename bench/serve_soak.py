"""A soak of the server: many streams at once for minutes, clients that vanish at random, then SIGTERM under load.

    python -m inferplane.bench.serve_soak --seconds 600 --streams 200 --platform cpu

At the end every block must be free, memory flat, and no stream may have waited on a dead one. Exit code 1 where it is not so.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .machine import describe_machine, describe_versions, today
from .serve_client import Client, Trip
from .serve_figures import Slo, figures
from .serve_server import OwnServer, own_server

VANISHING = 0.4
"""Share of the clients that leave before their answer ends."""
LONGEST_SILENCE_SECONDS = 30.0
"""From a request to its first token, or between two tokens, with that many streams on a slow machine."""
GROWTH_BYTES = 64 << 20
"""That memory may differ by from one half of the run to the other, its beginning left out."""
SETTLED_SHARE = 0.25
"""Of the run, after which every kind of request has been served and memory counts."""
SAMPLE_SECONDS = 1.0
EMPTY_SECONDS = 30.0
DRAIN_SECONDS = 60.0
LONG_TOKENS = 200
EMPTY = ("inferplane:requests_inside", "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


@dataclass
class Soak:
    """What happened so far. resident_bytes: (seconds, bytes) of the server."""

    began: float
    trips: list[Trip] = field(default_factory=list)
    vanished: int = 0
    resident_bytes: list[tuple[float, int]] = field(default_factory=list)
    running: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    holds: bool
    found: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inferplane.bench.serve_soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--platform", default="cpu")
    parser.add_argument("--output", type=Path, help="keep the record in this file")
    args = parser.parse_args(arguments)
    options = ["--platform", args.platform, "--max-num-seqs", str(args.streams), "--kv-cache-memory-gb", "0.25",
               "--drain-seconds", str(int(DRAIN_SECONDS))]
    with own_server(options) as own:
        record = asyncio.run(_soak(own, args.seconds, args.streams))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for check in record["checks"]:
        print(f"{'ok' if check['holds'] else 'FAILED':>6}  {check['name']}: {check['found']}", flush=True)
    return 0 if all(check["holds"] for check in record["checks"]) else 1


async def _soak(own: OwnServer, seconds: float, streams: int) -> dict[str, Any]:
    async with Client(own.url, timeout_seconds=4 * LONGEST_SILENCE_SECONDS) as client:
        await client.meet()
        soak = Soak(time.perf_counter())
        watcher = asyncio.create_task(_watch(soak, own, client))
        await asyncio.gather(*(_keep_asking(soak, client, random.Random(place), seconds) for place in range(streams)))
        watcher.cancel()
        ended = time.perf_counter()
        left = await _emptied(client)
        held = [*checks(soak, left, own.resident_bytes(), streams), *await _end_under_load(own, client, streams)]
    found = figures(soak.trips, Slo(), soak.began, ended)
    return {
        "format": 1, "kind": "soak", "date": today(), "machine": describe_machine(), "versions": describe_versions(),
        "seconds": seconds, "streams": streams, "checks": [asdict(check) for check in held], "vanished": soak.vanished,
        "resident_bytes": soak.resident_bytes, "results": [{name: value for name, value in found.items() if name != "timeline"}],
    }


async def _keep_asking(soak: Soak, client: Client, draw: random.Random, seconds: float) -> None:
    """One client after the other, some of whom leave: before the first token, in the middle, or close to the end."""
    while (now := time.perf_counter()) - soak.began < seconds:
        shared = [7] * draw.choice((0, 0, 40))
        prompt = shared + [draw.randrange(500) for _ in range(draw.randint(1, 300))]
        trip = Trip(now)
        soak.trips.append(trip)
        asking = client.ask(trip, prompt, draw.randint(1, LONG_TOKENS))
        if draw.random() >= VANISHING:
            await asking
            continue
        try:
            async with asyncio.timeout(draw.choice((0.05, 1.0, 10.0)) * draw.random()):
                await asking
        except TimeoutError:
            soak.trips.remove(trip)
            soak.vanished += 1


async def _watch(soak: Soak, own: OwnServer, client: Client) -> None:
    while True:
        now = time.perf_counter() - soak.began
        soak.resident_bytes.append((now, own.resident_bytes()))
        soak.running.append((await _metrics(client))["vllm:num_requests_running"])
        if len(soak.running) % 30 == 0:
            errors = Counter(trip.error for trip in soak.trips if trip.error)
            print(f"{now:6.0f} s: {len(soak.trips)} asked, {soak.vanished} vanished, {soak.resident_bytes[-1][1] >> 20} MiB, "
                  f"errors {dict(errors)}", file=sys.stderr, flush=True)
        await asyncio.sleep(SAMPLE_SECONDS)


async def _metrics(client: Client) -> Mapping[str, float]:
    """Name -> the sum of its samples; KV blocks by their state, too."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in re.findall(r"^([\w:]+)(\{.*\})? (\S+)$", (await client.get("/metrics")).text, re.MULTILINE):
        found[name] += float(value)
        if state := re.search(r'state="(\w+)"', labels):
            found[f"{name}.{state[1]}"] += float(value)
    return found


async def _emptied(client: Client) -> dict[str, float]:
    """What was still held when time was over; nothing, if all is well."""
    end = time.monotonic() + EMPTY_SECONDS
    while True:
        figures = await _metrics(client)
        left = {name: figures[name] for name in (*EMPTY, "inferplane:kv_blocks.held") if figures[name]}
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


def checks(soak: Soak, left: Mapping[str, float], resident_bytes: int, streams: int) -> list[Check]:
    well = [trip for trip in soak.trips if trip.error is None]
    errors = Counter(trip.error for trip in soak.trips if trip.error)
    silences = [gap for trip in well for gap in _silences(trip)]
    settled = [size for when, size in soak.resident_bytes if when >= SETTLED_SHARE * soak.resident_bytes[-1][0]]
    earlier, later = (median(half) for half in (settled[: len(settled) // 2], settled[len(settled) // 2 :]))
    return [
        Check("so many streams at once", max(soak.running) >= 0.9 * streams, f"{max(soak.running):.0f} computed of {streams} asked for"),
        Check("clients vanished, others were answered", soak.vanished > 0 and len(well) > 0,
              f"{soak.vanished:,} vanished, {len(well):,} answered"),
        Check("nobody who stayed met an error", not errors, ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "none"),
        Check("no stream waited on a dead one", max(silences) < LONGEST_SILENCE_SECONDS, f"longest silence {max(silences):.2f} s"),
        Check("every block is free at the end", not left, str(dict(left)) if left else "none held, nobody inside"),
        Check("memory is flat", later - earlier < GROWTH_BYTES,
              f"{earlier / 2**20:.0f} MiB, then {later / 2**20:.0f} MiB (medians), {resident_bytes / 2**20:.0f} MiB at the end"),
    ]


def _silences(trip: Trip) -> list[float]:
    assert trip.sent is not None
    times = [trip.sent, *trip.arrivals]
    return [later - earlier for earlier, later in pairwise(times)]


async def _end_under_load(own: OwnServer, client: Client, streams: int) -> list[Check]:
    """SIGTERM with every stream under way: they end well, who comes later gets 503, and the process ends in time."""
    trips = [Trip(time.perf_counter()) for _ in range(streams)]
    asked = [asyncio.create_task(client.ask(trip, [place % 500] * 20, LONG_TOKENS)) for place, trip in enumerate(trips)]
    while not all(trip.arrivals or trip.error for trip in trips):
        await asyncio.sleep(0.05)
    under_way = sum(trip.ended is None for trip in trips)
    began = time.perf_counter()
    own.process.send_signal(signal.SIGTERM)
    late = Trip(began)
    while late.error is None and not own.process.poll():
        late = Trip(time.perf_counter())
        await client.ask(late, [1, 2, 3], 1)
    await asyncio.gather(*asked)
    code = await asyncio.to_thread(own.process.wait, DRAIN_SECONDS)
    seconds, cut = time.perf_counter() - began, Counter(trip.error for trip in trips if trip.error)
    return [
        Check("streams under way at SIGTERM ended well", under_way > 0 and not cut, f"{under_way} under way; {dict(cut) or 'none cut'}"),
        Check("who came later was refused", late.error == "503 shutting_down", str(late.error)),
        Check("the process ended within the drain limit", code == 0 and seconds < DRAIN_SECONDS, f"code {code} after {seconds:.1f} s"),
    ]


if __name__ == "__main__":
    sys.exit(main())
