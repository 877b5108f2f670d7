"""From settings to a running engine: platform, checkpoint, model, KV memory, scheduler, thread."""
from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RequestError
from ..ops import DTYPES
from ..platforms import registry
from ..platforms.contract import Collectives, Platform, World
from .chat import ChatTemplate
from .checkpoint import Checkpoint
from .config import KV_DTYPES, CacheConfig, EngineConfig
from .engine import Engine
from .env import Environment
from .formats.gguf import Gguf
from .formats.gguf_words import template_of, tokenizer_of
from .hub import locate
from .kv.layout import Layout, Shape, layout_for_bytes, layout_for_tokens
from .loader import Loaded, LoadOptions, Progress, Source, load, plan_model
from .parallel.messages import Job
from .parallel.peers import Peers
from .runner import Runner
from .scheduler.scheduler import Scheduler
from .tokenizer import Tokenizer
from .warm_up import warm_up

ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Started:
    """A running engine, and what it was made of."""

    engine: Engine
    loaded: Loaded
    layout: Layout
    defaults: Mapping[str, Any]
    """Sampling settings that the checkpoint recommends."""
    chat_template: ChatTemplate | None = None
    folder: Path | None = None

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any,
    ) -> list[int]:
        """Token ids of the prompt that the model's chat template makes of a conversation. Raises `RequestError`."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None or self.chat_template is None:
            raise RequestError("this model has no tokenizer, so no chat template either; give token ids to `generate`")
        return tokenizer.encode(self.chat_template.render(messages, tools, **variables), add_special_tokens=False)


def find_platform(config: EngineConfig) -> registry.Found:
    cache = Environment.read().cache / "compiled"
    return registry.find(config.execution.platform, threads=config.execution.threads, cache=cache)


def open_platform(config: EngineConfig) -> Platform:
    return find_platform(config).open()


def find_checkpoint(config: EngineConfig) -> Path:
    return locate(config.model.model, revision=config.model.revision)


def open_source(config: EngineConfig) -> Checkpoint:
    return Checkpoint.open(find_checkpoint(config))


def load_options(config: EngineConfig) -> LoadOptions:
    return LoadOptions(
        dtype=config.model.dtype, quantization=config.model.quantization,
        max_model_len=config.model.max_model_len, block_tokens=config.cache.block_size,
        kv_dtype=KV_DTYPES.get(config.cache.kv_cache_dtype),
        kernels=dict(config.execution.kernels), deterministic=config.execution.deterministic,
        packed_cache=Environment.read().cache / "packed" if config.model.packed_cache else None,
    )


def shared(platform: Platform, devices: int) -> World:
    """Rank 0 of so many devices. Raises `ConfigError` for a platform whose devices do not work together."""
    if devices > 1 and not platform.parallel:
        raise ConfigError(f"tensor_parallel {devices} was asked for, and a model on {platform.name} runs on one device. "
                          "Leave it out, or take a platform that `inferplane platforms` shows with several devices.")
    return World(size=devices, one_process=devices > 1 and platform.one_process)


def start(config: EngineConfig, *, source: Source | None = None, progress: Progress | None = None) -> Started:
    """Everything from settings to a thread that waits for requests.

    source: weights from elsewhere than a checkpoint, which then has no tokenizer either. Raises an `InferplaneError`
    whose message has the remedy; whatever was opened is closed again.
    """
    found = find_platform(config)
    platform = found.open()
    peers: Peers | None = None
    try:
        place = source or find_checkpoint(config)
        checkpoint = Checkpoint.open(place) if isinstance(place, Path) else place
        options, packs = load_options(config), registry.kernel_packs(platform.name)
        world = shared(platform, config.execution.tensor_parallel)
        collectives: Collectives | None = None
        if world.size > 1:
            plan_model(checkpoint, platform, options, packs, world)
            if not world.one_process:
                peers = Peers(Job(found, registry.find_packs(platform.name), place, options, world))
            collectives = peers.meet(platform) if peers else platform.collectives(world)
        loaded = load(checkpoint, platform, options, packs, progress, world, collectives)
        scheduling = config.scheduler(loaded.max_model_len)
        shape = Shape(scheduling.max_num_seqs, loaded.max_model_len, scheduling.max_num_batched_tokens)
        free = min(platform.memory().free, peers.free_bytes()) if peers else platform.memory().free
        layout = _layout(config.cache, loaded, shape, free)
        scheduler = Scheduler(scheduling, loaded.model.states, layout.blocks)
        if peers:
            peers.allocate(layout.blocks, scheduling.max_num_seqs)
        runner = Runner(loaded, blocks=layout.blocks, slots=scheduling.max_num_seqs, peers=peers)
        wanted = platform.capabilities.warm_up if config.execution.warm_up is None else config.execution.warm_up
        if wanted:
            warm_up(runner, shape, progress)
        tokenizer: Tokenizer | None = None
        eos_ids: frozenset[int] = frozenset()
        defaults: Mapping[str, Any] = {}
        template: ChatTemplate | None = None
        folder: Path | None = None
        if isinstance(checkpoint, Checkpoint):
            folder = checkpoint.folder
            tokenizer, template = _words(checkpoint, config.model.tokenizer)
            ends = checkpoint.generation.end_tokens or tokenizer.end_tokens
            eos_ids = frozenset(end for end in ends if end < loaded.model.vocab_size)
            defaults = checkpoint.generation.sampling
        seed = config.execution.seed if config.execution.seed is not None else secrets.randbits(31)
        engine = Engine(scheduler, runner, tokenizer, eos_ids=eos_ids, max_model_len=loaded.max_model_len, seed=seed)
    except BaseException:
        if peers:
            peers.close()
        platform.close()
        raise
    return Started(engine, loaded, layout, defaults, template, folder)


def _words(checkpoint: Checkpoint, asked: str | None) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer that was named, the one beside the weights, or that of a .gguf file's own metadata."""
    folder = locate(asked) if asked else checkpoint.folder
    if not asked and isinstance(checkpoint.format, Gguf) and not (folder / "tokenizer.json").is_file():
        file = checkpoint.format.file
        return Tokenizer(tokenizer_of(file)), ChatTemplate(*template_of(file))
    return Tokenizer.load(folder), ChatTemplate.load(folder)


def _layout(cache: CacheConfig, loaded: Loaded, shape: Shape, free: int) -> Layout:
    """What was asked for; otherwise a fraction of the free bytes, and no more than all slots at full length can use.

    Every size is one device's.
    """
    groups = loaded.states
    if cache.kv_cache_memory_gb is not None:
        return layout_for_bytes(groups, int(cache.kv_cache_memory_gb * 1e9), shape, ITEMSIZE)
    if free <= 0:
        raise ConfigError(f"{loaded.platform.name} tells no free memory; set kv_cache_memory_gb")
    most = layout_for_tokens(groups, shape.sequences * shape.length_tokens, shape, ITEMSIZE)
    budget = int(free * cache.kv_cache_memory_fraction)
    return most if most.memory_bytes <= budget else layout_for_bytes(groups, budget, shape, ITEMSIZE)
