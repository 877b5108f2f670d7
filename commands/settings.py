"""The engine's and a draw's settings as options of a command; their names are those of the configuration with dashes."""
from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.llm import LLM
    from ..core.request import SamplingParams


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options left out are None: then the environment, the config file and the defaults speak."""
    group = parser.add_argument_group("engine")
    group.add_argument("--model", metavar="M", help="a folder or a Hugging Face name; without it the embedded model")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hugging Face name")
    group.add_argument("--tokenizer", metavar="T", help="a folder or name, where it is not the model's own")
    group.add_argument("--platform", metavar="P", help="a platform, with options after a colon (cuda:1), or auto")
    group.add_argument("--tensor-parallel", type=int, metavar="N", help="devices that share the model")
    group.add_argument("--dtype", metavar="D", help="auto, float32, bfloat16, float16 or float64")
    group.add_argument("--quantization", metavar="Q", help="int8 or int4: quantize the linears while loading (or a scheme: int4:g64)")
    group.add_argument("--packed-cache", action="store_const", const=True, help="keep packed weights on disk for the next start")
    group.add_argument("--max-model-len", type=int, metavar="N", help="most tokens of prompt and answer together")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences that run at once")
    group.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="tokens computed in one step")
    group.add_argument("--block-size", type=int, metavar="N", help="tokens of a KV block")
    group.add_argument("--kv-cache-memory-gb", type=float, metavar="GB", help="memory for keys and values")
    group.add_argument("--kv-cache-dtype", metavar="D", help="auto, int8 or fp8: keep keys and values as codes with scales")
    group.add_argument("--no-prefix-caching", dest="enable_prefix_caching", action="store_const", const=False,
                       help="compute every prompt anew")
    group.add_argument("--threads", type=int, metavar="N", help="threads of a CPU")
    group.add_argument("--kernel", action="append", metavar="OP=NAME", help="this kernel and no other for an op; repeatable")
    group.add_argument("--deterministic", action="store_const", const=True, help="batch-invariant kernels only")
    group.add_argument("--warm-up", action=argparse.BooleanOptionalAction,
                       help="compile likely steps before the first request (default: where compiling takes long)")
    group.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings; goes before INFERPLANE_CONFIG")


ENGINE = (
    "model", "revision", "tokenizer", "platform", "tensor_parallel", "dtype", "quantization", "packed_cache", "max_model_len",
    "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_gb", "kv_cache_dtype", "enable_prefix_caching",
    "threads", "deterministic", "warm_up", "config",
)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, metavar="N",
                       help=f"most tokens of an answer (default: {ANSWER_TOKENS}, or what is left)")
    group.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token (default: the model's own)")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same tokens, on every platform")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "stop")
ANSWER_TOKENS = 256


def names(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's settings that were given, by the names of the configuration."""
    given: dict[str, Any] = {name: getattr(args, name) for name in ENGINE}
    given["kernels"] = dict(_kernel(text) for text in args.kernel) if args.kernel else None
    return {name: value for name, value in given.items() if value is not None}


def options(given: Mapping[str, Any]) -> list[str]:
    """What `names` gave, as options again, for a command in a process of its own."""
    made = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name == "kernels":
            made += [part for op, kernel in value.items() for part in ("--kernel", f"{op}={kernel}")]
        elif name == "enable_prefix_caching":
            made += [] if value else ["--no-prefix-caching"]
        elif isinstance(value, bool):
            made.append(option if value else option.replace("--", "--no-", 1))
        else:
            made += [option, str(value)]
    return made


def start(args: argparse.Namespace) -> LLM:
    """A running engine; on a terminal with a progress bar while it loads."""
    from ..core.env import Environment
    from ..core.llm import LLM

    logging.basicConfig(level=Environment.read().log.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    return LLM(show_progress=sys.stderr.isatty(), **names(args))


def sampling(args: argparse.Namespace, llm: LLM, prompt_tokens: int) -> SamplingParams:
    """What the options say over what the model recommends."""
    given = {name: getattr(args, name) for name in SAMPLING}
    room = llm.loaded.max_model_len - prompt_tokens
    limit = args.max_tokens if args.max_tokens is not None else max(1, min(ANSWER_TOKENS, room))
    return llm.default_params(max_tokens=limit, **{name: value for name, value in given.items() if value is not None})


def resolution(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of kernels, as plain data; no weight is read. Of a model on several devices: one device's."""
    from ..core.config import EngineConfig
    from ..core.env import Environment
    from ..core.loader import plan_model
    from ..core.start import load_options, open_platform, open_source, shared
    from ..platforms.registry import kernel_packs

    config = EngineConfig.resolve(names(args), Environment.read())
    platform = open_platform(config)
    try:
        world = shared(platform, config.execution.tensor_parallel)
        _, table = plan_model(open_source(config), platform, load_options(config), kernel_packs(platform.name), world)
    finally:
        platform.close()
    return table.rows()


def _kernel(text: str) -> tuple[str, str]:
    from ..errors import ConfigError

    op, equals, name = text.partition("=")
    if not equals:
        raise ConfigError(f"--kernel {text!r} names no kernel. Write OP=NAME, for instance attention=numpy.reference.")
    return op.strip(), name.strip()
