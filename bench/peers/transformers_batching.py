"""transformers' continuous batching on torch's device, on one of our works: `python -m inferplane.bench.peers.transformers_batching`.

It runs in our own environment, since what it is held against is measured on the same chip and by the same torch.
"""
from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..machine import describe_machine, describe_versions, today
from ..run import FORMAT
from ..shapes import SHAPES
from ..throughput import WARM_UP_TOKENS
from ..work import Work, parse_works


def main() -> None:
    parser = argparse.ArgumentParser(prog="transformers_batching", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--work", metavar="W", required=True, help="as `inferplane bench throughput` takes it")
    parser.add_argument("--repeats", type=int, metavar="N", default=2)
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="where the record goes")
    args = parser.parse_args()
    [work] = parse_works(args.work)
    model, device = _model(args.shape)
    rng = np.random.default_rng(0)
    _seconds(model, work, rng, WARM_UP_TOKENS)
    seconds = [_seconds(model, work, rng) for _ in range(args.repeats)]
    record = {
        "format": FORMAT, "kind": "peer", "peer": "transformers continuous batching", "date": today(), "machine": describe_machine(),
        "versions": describe_versions() | {"transformers": version("transformers")}, "model": {"name": args.shape}, "device": device,
        "results": [{
            "work": asdict(work), "counted": work.counted, "tokens_per_second": work.counted_tokens / median(seconds), "seconds": seconds,
        }],
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{work.name}: {work.counted_tokens / median(seconds):,.1f} {work.counted} tokens/s")


def _model(shape: str) -> tuple[Any, str]:
    """(random weights in bfloat16 on the device, its name)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = dict(SHAPES[shape])
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config), dtype=torch.bfloat16)
    return model.eval(), torch.cuda.get_device_name(device) if device.type != "cpu" else "cpu"


def _seconds(model: Any, work: Work, rng: np.random.Generator, most_tokens: int | None = None) -> float:
    """Of one run; each request draws all of its tokens."""
    from transformers import GenerationConfig

    params = work.params(most_tokens)
    config = GenerationConfig(max_new_tokens=max(one.max_tokens or 0 for one in params), do_sample=work.temperature > 0,
                              temperature=work.temperature or 1.0, eos_token_id=-1, pad_token_id=0)
    prompts = list(work.prompts(model.config.vocab_size, rng))
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        start = time.perf_counter()
        for ids, one in zip(prompts, params, strict=True):
            manager.add_request(ids, max_new_tokens=one.max_tokens)
        drawn, ended = 0, 0
        while ended < len(prompts):
            answer = manager.get_result(timeout=1)
            if answer is not None and answer.is_finished():
                drawn, ended = drawn + len(answer.generated_tokens), ended + 1
            elif answer is None and not manager.is_running():
                raise SystemExit("transformers' batching stopped before all answers were there; its log says why")
        seconds = time.perf_counter() - start
    asked = sum(one.max_tokens or 0 for one in params)
    if drawn != asked:
        raise SystemExit(f"work {work.name} needs {asked} tokens; {drawn} were drawn")
    return seconds


if __name__ == "__main__":
    main()
