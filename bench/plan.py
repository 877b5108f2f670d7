"""Host time of one plan: 256 sequences decoding while 100,000 wait. `python -m inferplane.bench.plan [--json]`."""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from ..core.request import Request, SamplingParams
from ..core.scheduler.config import SchedulerConfig
from ..core.scheduler.policy import BUILTIN
from ..core.scheduler.scheduler import Scheduler
from ..ops.state import StateArray, StateGroup

LENGTH_TOKENS = 4096
GROUPS = (
    StateGroup("full", (0,), {"k": StateArray(8, 128, "bfloat16")}),
    StateGroup("window", (1,), {"k": StateArray(8, 128, "bfloat16")}, window=1024),
)


def plan_times(policy: str, running: int, waiting: int, plans: int, ahead: bool, groups: Sequence[StateGroup]) -> np.ndarray:
    """Seconds of each plan [plans] while `running` sequences decode. ahead: each is made before the update before it.

    The thread's own time, which is the wall's on an idle machine: a plan waits for nothing.
    """
    config = SchedulerConfig(LENGTH_TOKENS, max_num_seqs=running, max_num_batched_tokens=max(2048, running), policy=policy)
    blocks = [1 + running * -(-LENGTH_TOKENS // group.block_tokens) for group in groups]
    scheduler = Scheduler(config, groups, blocks)
    params = SamplingParams(max_tokens=2048)
    rng = np.random.default_rng(0)
    for i in range(running + waiting):
        prompt = rng.integers(0, 32000, rng.integers(33, 97), dtype=np.int32)
        scheduler.add(Request(f"r{i}", prompt, params, 2048, priority=int(i % 7), tenant=f"t{i % 100}"), 0.0)
    seconds: list[float] = []
    last = None
    while len(seconds) < plans:
        start = time.thread_time()
        plan = scheduler.plan(0.0)
        elapsed = time.thread_time() - start
        if plan is not None and len(plan.rows) == plan.token_count == running:
            seconds.append(elapsed)
        done, last = (last, plan) if ahead else (plan, None)
        if done is not None:
            scheduler.update(done, dict.fromkeys(done.samples, 7), 0.0)
    return np.array(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="inferplane.bench.plan", description=__doc__)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = []
    for policy in BUILTIN:
        for ahead in (True, False):
            times = 1e3 * plan_times(policy, options.running, options.waiting, options.plans, ahead, GROUPS)
            results.append({
                "policy": policy, "ahead": ahead, "running": options.running, "waiting": options.waiting, "plans": options.plans,
                "median_ms": round(float(np.median(times)), 4), "p99_ms": round(float(np.quantile(times, 0.99)), 4),
            })
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{options.running} running, {options.waiting} waiting, {options.plans} plans, {len(GROUPS)} state groups")
    for result in results:
        order = "ahead of the update" if result["ahead"] else "after the update"
        print(f"{result['policy']:>9} {order:>20}: median {result['median_ms']:.3f} ms, p99 {result['p99_ms']:.3f} ms")


if __name__ == "__main__":
    main()
