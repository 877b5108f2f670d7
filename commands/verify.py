"""`inferplane verify`: whether a checkpoint gives here what it gives under Hugging Face transformers."""
from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

EXAMPLES = """\
examples:
  inferplane verify ./Llama-3.2-1B
  inferplane verify --platform reference --steps 16 ./Qwen3-0.6B
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "verify", help="compare a model with Hugging Face transformers", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compute the same text here and under Hugging Face transformers, both in float32: logits and greedy tokens. "
                    "Needs pip install 'inferplane[verify]'. Exit code 1 where they differ.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hugging Face name, or tiny")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hugging Face name")
    parser.add_argument("--platform", metavar="P", help="a platform, with options after a colon, or auto")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a CPU")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="greedy tokens to compare (default: 64)")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X",
                        help="largest difference of logits, relative to the largest logit (default: 1e-4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..conformance.verify import verify
    from ..core.config import EngineConfig
    from ..core.env import Environment
    from ..core.hub import locate
    from ..core.start import open_platform
    from ..platforms.registry import kernel_packs

    names = {"platform": args.platform, "threads": args.threads}
    platform = open_platform(EngineConfig.resolve(names, Environment.read()))
    try:
        found = verify(locate(args.model, args.revision), platform, kernel_packs(platform.name), steps=args.steps, tolerance=args.tolerance)
    finally:
        platform.close()
    if args.json:
        print(json.dumps({**asdict(found), "passed": found.passed}))
    else:
        print(
            f"{'PASS' if found.passed else 'FAIL'}  {args.model} ({found.model_type}) on {found.platform}: "
            f"{found.equal_steps} of {found.steps} greedy tokens equal, "
            f"largest logit error {found.logit_error:.2e} (at most {found.tolerance:.0e})"
            + (f"; the first that differs was ahead by {found.margin:.2e}" if found.margin is not None else "")
        )
    return 0 if found.passed else 1
