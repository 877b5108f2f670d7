"""`inferplane tune kernels`: launch configurations measured on the accelerator at hand, and written into its table."""
from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..core.loader import Source
    from ..ops import Spec
    from ..platforms.contract import Platform

EXAMPLES = """\
examples:
  inferplane tune kernels --platform cuda --model ./Llama-3.1-8B
  inferplane tune kernels --platform cuda --model ./Llama-3.1-8B --quantization int4 --tokens 1,16
  inferplane tune kernels --platform cuda --shape llama-1b --quantization int8
  inferplane tune kernels --platform rocm --linear 4096x14336 --linear 28672x4096 --dtype bfloat16
  inferplane tune kernels --platform cuda --linear 6144x4096 --quantization float8_e4m3fn:af8 -o tuned.toml --json

Each product is measured with every number of --tokens: the table in use first, then some hundred tiles, warps and stages, the
cache of the chip emptied before each run. It takes minutes for each product, most of it compiling. The winner is put before the
others of its kernel; the next start uses it. Nothing is ever measured while serving.
"""
TOKENS = "1,16,64,512"


def add(commands: Any) -> None:
    parser = commands.add_parser("tune", help="measure launch configurations of kernels on this accelerator")
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    kernels = parts.add_parser(
        "kernels", help="tiles, warps and stages of matrix products", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure launch configurations of the platform's own kernels for the products of a model, of a shape or of your own, "
                    "and write the best ones into the table that kernels look them up in. Needs the accelerator itself.",
    )
    settings.add_engine(kernels)
    kernels.add_argument("--shape", metavar="NAME", help="a model that is only a shape, as in `inferplane bench`, instead of --model")
    kernels.add_argument("--linear", action="append", metavar="OUTPUTSxINPUTS", help="a linear of this size instead of a model; repeatable")
    kernels.add_argument("--tokens", default=TOKENS, metavar="N,...", help=f"numbers of tokens to measure (default: {TOKENS})")
    kernels.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there instead of where kernels look")
    kernels.add_argument("--json", action="store_true", help="print one JSON object")
    kernels.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..core.config import EngineConfig
    from ..core.env import Environment
    from ..core.start import open_platform, open_source

    tokens = _tokens(args.tokens)
    config = EngineConfig.resolve(settings.names(args), Environment.read())
    platform = open_platform(config)
    try:
        if args.linear:
            specs = [_linear(text, args) for text in args.linear]
        else:
            specs = _of_model(_shape(args.shape) if args.shape else open_source(config), config, platform)
        work = [(spec, count) for spec in dict.fromkeys(specs) for count in tokens]
        found, path = platform.tune_kernels(work, args.output, _progress(len(work)))
    finally:
        platform.close()
    if args.json:
        print(json.dumps({"platform": platform.name, "table": str(path), "tuned": found}))
    else:
        print(f"{len(found)} entries in {path}")
    return 0


def _progress(count: int) -> Any:
    """A line on stderr for each product that is done."""
    done = iter(range(1, count + 1))

    def tell(line: str) -> None:
        print(f"[{next(done)}/{count}] {line}", file=sys.stderr, flush=True)

    return tell


def _tokens(text: str) -> list[int]:
    from ..errors import ConfigError

    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ConfigError(f"--tokens {text!r}: write numbers from 1 on with commas between them, for instance {TOKENS}")
    return [int(part) for part in text.split(",")]


def _linear(text: str, args: argparse.Namespace) -> Spec:
    from ..core.quantization import asked_scheme
    from ..errors import ConfigError
    from ..ops import Dim, Linear

    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ConfigError(f"--linear {text!r}: write OUTPUTSxINPUTS, for instance 4096x14336")
    scheme = asked_scheme(args.quantization) if args.quantization else None
    dtype = args.dtype if args.dtype not in (None, "auto") else "bfloat16"
    return Linear(input=Dim(int(match[2])), outputs=(Dim(int(match[1])),), dtype=dtype, scheme=scheme)


def _shape(name: str) -> Source:
    from ..bench.shapes import RandomWeights

    return RandomWeights.named(name)


def _of_model(source: Source, config: Any, platform: Platform) -> list[Spec]:
    """The products of a model; no weight is read."""
    from ..core.loader import plan_model
    from ..core.start import load_options
    from ..platforms.registry import kernel_packs

    _, table = plan_model(source, platform, load_options(config), kernel_packs(platform.name))
    return [choice.spec for choice in table if choice.spec.op in ("linear", "gated_linear", "moe")]
