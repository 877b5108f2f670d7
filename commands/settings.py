"""The engine's settings as options of a command; their names are those of the configuration with dashes."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options left out are None: then the environment, the config file and the defaults speak."""
    group = parser.add_argument_group("engine")
    group.add_argument("--model", metavar="M", help="a folder or a Hugging Face name; without it the embedded model")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hugging Face name")
    group.add_argument("--tokenizer", metavar="T", help="a folder or name, where it is not the model's own")
    group.add_argument("--platform", metavar="P", help="a platform, with options after a colon (cuda:1), or auto")
    group.add_argument("--dtype", metavar="D", help="auto, float32, bfloat16, float16 or float64")
    group.add_argument("--max-model-len", type=int, metavar="N", help="most tokens of prompt and answer together")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="sequences that run at once")
    group.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="tokens computed in one step")
    group.add_argument("--block-size", type=int, metavar="N", help="tokens of a KV block")
    group.add_argument("--kv-cache-memory-gb", type=float, metavar="GB", help="memory for keys and values")
    group.add_argument("--no-prefix-caching", dest="enable_prefix_caching", action="store_const", const=False,
                       help="compute every prompt anew")
    group.add_argument("--threads", type=int, metavar="N", help="threads of a CPU")
    group.add_argument("--kernel", action="append", metavar="OP=NAME", help="this kernel and no other for an op; repeatable")
    group.add_argument("--deterministic", action="store_const", const=True, help="batch-invariant kernels only")
    group.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings; goes before INFERPLANE_CONFIG")


ENGINE = (
    "model", "revision", "tokenizer", "platform", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size",
    "kv_cache_memory_gb", "enable_prefix_caching", "threads", "deterministic",
)


def config(args: argparse.Namespace) -> Any:
    """The EngineConfig that the options, the environment and the file give together."""
    from dataclasses import replace

    from ..core.config import EngineConfig
    from ..core.env import Environment

    environment = Environment.read()
    if args.config is not None:
        environment = replace(environment, config=args.config)
    names: dict[str, Any] = {name: getattr(args, name) for name in ENGINE}
    names["seed"] = getattr(args, "seed", None)
    if args.kernel:
        names["kernels"] = dict(_kernel(text) for text in args.kernel)
    return EngineConfig.resolve(names, environment)


def _kernel(text: str) -> tuple[str, str]:
    from ..errors import ConfigError

    op, equals, name = text.partition("=")
    if not equals:
        raise ConfigError(f"--kernel {text!r} names no kernel. Write OP=NAME, for instance attention=reference.")
    return op.strip(), name.strip()
