"""`inferplane compile`: a model's whole steps compiled for a chip that need not be there, and what they take of it."""
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..bench.ahead import Compiled, Plan
    from ..core.config import EngineConfig
    from ..model_zoo.base import Precision
    from ..platforms.contract import Compiler

EXAMPLES = """\
examples:
  inferplane compile --platform tpu --target v5e:2x4 --model llama-8b --tensor-parallel 8
  inferplane compile --platform tpu --target v5e:2x2 --model llama-8b --tensor-parallel 4 --quantization int8
  inferplane compile --platform tpu --target v6e:2x2 --model ./Llama-3.1-8B --tensor-parallel 4 --rows 128 --prompt 4096 --json

A model is a folder, a Hugging Face name, or a shape as in `inferplane bench`; no weight is read. Two steps are compiled: decoding of
--rows rows, each behind --prompt tokens, and the prefill of one prompt of --prompt tokens; KV memory holds --prompt tokens of each row.
FLOPs and bytes are arithmetic over the model (bench/step.py), the bound is what the chip's published peaks allow, and memory is the
compiler's own account. Exit code 1: it does not fit.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compile", help="compile a model's steps for a chip that is not there", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compile the real steps of a model with a chip's own compiler, without the chip and without weights: memory of each "
                    "device, FLOPs, bytes, the bound of time and of tokens per second, and whether it fits.",
    )
    parser.add_argument("--target", metavar="T", help="a chip, or a slice of several, such as v5e:2x4")
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="sequences that decode together (default: 64)")
    parser.add_argument("--prompt", type=int, default=2048, metavar="N",
                        help="tokens of the prompt, and of each sequence's context (default: 2048)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings.add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..bench.ahead import compile_steps
    from ..core.config import EngineConfig
    from ..core.env import Environment
    from ..core.start import load_options
    from ..errors import ConfigError

    for name in ("rows", "prompt"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least 1")
    config = EngineConfig.resolve(settings.names(args), Environment.read())
    compiler = _compiler(config.execution.platform, args.target)
    said, stored = _model(config)
    plan = compile_steps(
        said, stored, compiler, load_options(config), devices=config.execution.tensor_parallel, rows=args.rows, prompt=args.prompt,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    told = _told(plan, config, args.target)
    sys.stdout.write(json.dumps(told) + "\n" if args.json else _tables(told))
    return 0 if plan.fits else 1


def _compiler(name: str, target: str | None) -> Compiler:
    from ..errors import ConfigError
    from ..platforms import registry

    platform = None if name == registry.AUTO else registry.loaded(name)
    if platform is None or not platform.targets:
        able = " or ".join(one for one in registry.names() if registry.loaded(one).targets)
        raise ConfigError(f"compile needs a platform that compiles for chips that are not there, found {name!r}. Add --platform {able}.")
    if name != platform.name:
        raise ConfigError(f"compile takes a platform without options, found {name!r}. "
                          f"Write --platform {platform.name}, and the chip as --target.")
    if target is None:
        raise ConfigError(f"compile needs a target. Add --target with one of {', '.join(platform.targets)}.")
    return platform.compiler(target)


def _model(config: EngineConfig) -> tuple[dict[str, Any], Precision]:
    """(config.json, how the checkpoint is stored)."""
    from ..bench.shapes import SHAPES
    from ..core.start import open_source
    from ..model_zoo.base import UNQUANTIZED

    if config.model.model in SHAPES:
        return SHAPES[config.model.model], UNQUANTIZED
    source = open_source(config)
    return dict(source.config), source.precision


def _told(plan: Plan, config: EngineConfig, target: str) -> dict[str, Any]:
    """All of it as plain data. Bytes and FLOPs are those of one device."""
    loaded = plan.loaded
    return {
        "platform": loaded.platform.name, "target": target, "devices": config.execution.tensor_parallel,
        "model": config.model.model or "the embedded model", "dtype": loaded.model.dtype,
        "parameters": sum(prod(one.shape) for one in loaded.model.weights.tensors().values()),
        "chip": plan.chip and asdict(plan.chip), "kv_bytes": plan.kv_bytes, "fits": plan.fits,
        "steps": [_step(one) | {"fits": plan.chip and one.fits(plan.chip)} for one in plan.steps],
        "kernels": [asdict(code) for code in plan.kernels],
        "resolution": {f"{one.spec.op} {one.local}": one.name for one in loaded.resolution},
    }


def _step(one: Compiled) -> dict[str, Any]:
    needed = one.needs
    return {
        "name": one.name, "flops": dict(needed.flops), "weight_bytes": needed.weight_bytes, "kv_read_bytes": needed.kv_read_bytes,
        "kv_written_bytes": needed.kv_written_bytes, "bytes_moved": needed.bytes_moved,
        "bound_seconds": one.time and one.time.seconds, "bound_by": one.time and one.time.by, "tokens_per_second": one.tokens_per_second,
        "compiled": one.code and {**asdict(one.code), "memory_bytes": one.code.memory_bytes},
    }


def _tables(told: dict[str, Any]) -> str:
    """Captured first: when a reader leaves, rich would end the process by itself."""
    from rich.console import Console
    from rich.table import Table

    console, steps, chip = Console(), told["steps"], told["chip"]
    size = f"{told['parameters'] / 1e9:.2f} billion parameters in {told['dtype']}"
    title = f"{told['model']}, {size}, on {told['devices']} of {told['target']}"
    table = Table("of each device", *(step["name"] for step in steps), title=title, title_justify="left")
    for name, text in LINES:
        table.add_row(name, *(text(step) for step in steps))
    with console.capture() as captured:
        console.print(table, markup=False)
        console.print(f"KV memory: {_gb(told['kv_bytes'])}", markup=False)
        if chip:
            console.print(f"{chip['name']}: {_gb(chip['memory_bytes'])}, {chip['read_bytes_per_second'] / 1e9:,.0f} GB/s, "
                          f"{chip['flops']['bfloat16'] / 1e12:,.0f} TFLOP/s in bfloat16, as published ({chip['source']})",
                          markup=False, soft_wrap=True)
        for code in told["kernels"]:
            if code["reason"]:
                console.print(f"{code['kernel']} cannot serve there: {code['reason']}", markup=False, soft_wrap=True)
    return captured.get()


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def _of(name: str) -> Any:
    return lambda step: _gb(step["compiled"][name]) if step["compiled"] else "no whole program"


def _verdict(step: dict[str, Any]) -> str:
    return (step["compiled"] or {}).get("reason") or {True: "yes", False: "no", None: "unknown"}[step["fits"]]


LINES: tuple[tuple[str, Any], ...] = (
    ("fits", _verdict),
    ("memory", _of("memory_bytes")),
    ("  weights, KV, batch", _of("argument_bytes")),
    ("  temporary", _of("temporary_bytes")),
    ("weights read", lambda step: _gb(step["weight_bytes"])),
    ("KV read and written", lambda step: _gb(step["kv_read_bytes"] + step["kv_written_bytes"])),
    ("FLOPs", lambda step: f"{sum(step['flops'].values()) / 1e9:,.1f} billion"),
    ("  as the compiler counts", lambda step: f"{step['compiled']['flops'] / 1e9:,.1f} billion" if step["compiled"] else ""),
    ("bound of time", lambda step: f"{1e3 * step['bound_seconds']:.3f} ms ({step['bound_by']})" if step["bound_seconds"] else "unknown"),
    ("bound of tokens", lambda step: f"{step['tokens_per_second']:,.0f}/s" if step["tokens_per_second"] else "unknown"),
    ("compiled in", lambda step: f"{step['compiled']['seconds']:.1f} s" if step["compiled"] else ""),
)
