"""Settings: one frozen config per subsystem, made from keyword arguments or from one TOML file of the same names."""
from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from ..errors import ConfigError, suggest
from ..ops import FLOATS, Spec
from .env import Environment
from .scheduler.config import SchedulerConfig


@dataclass(frozen=True)
class ModelConfig:
    """What to serve.

    model: a folder, or a name on the Hugging Face hub; None: the embedded model. revision: of a hub name.
    quantization: of the linears while loading, int8, int4 or a scheme; None: as they are stored.
    dtype: what to compute in; "auto": the checkpoint's where the platform has it. max_model_len: tokens of prompt and
    answer together; None: the checkpoint's. tokenizer: a folder or hub name, where it is not the model's own.
    packed_cache: keep what the kernels pack below INFERPLANE_CACHE, so that the next start maps it.
    """

    model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    packed_cache: bool = False

    def __post_init__(self) -> None:
        _flag("packed_cache", self.packed_cache)
        for name in ("model", "revision", "tokenizer", "quantization"):
            _text(name, getattr(self, name))
        _one_of("dtype", self.dtype, ("auto", *FLOATS))
        _whole("max_model_len", self.max_model_len, 2)


KV_DTYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""Values of kv_cache_dtype besides auto, and the dtype of the codes."""


@dataclass(frozen=True)
class CacheConfig:
    """The memory for keys and values.

    block_size: tokens of a block; None: what the platform prefers. kv_cache_memory_gb: size of the pool in 10^9 bytes;
    None: kv_cache_memory_fraction of what the platform says is free, and no more than the model can use.
    kv_cache_dtype: int8 or fp8 keep codes with a scale for each token and head; "auto": what the checkpoint says, which
    is the model's dtype unless it says more.
    """

    block_size: int | None = None
    kv_cache_memory_gb: float | None = None
    kv_cache_memory_fraction: float = 0.5
    enable_prefix_caching: bool = True
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_DTYPES))
        _whole("block_size", self.block_size, 1)
        _positive("kv_cache_memory_gb", self.kv_cache_memory_gb)
        _positive("kv_cache_memory_fraction", self.kv_cache_memory_fraction, most=1.0)
        _flag("enable_prefix_caching", self.enable_prefix_caching)


@dataclass(frozen=True)
class SchedulingConfig:
    """How requests share a step. None: what the engine derives from the model and the platform.

    max_num_batched_tokens: tokens computed in one step, of which one prompt gets at most long_prefill_tokens.
    max_num_seqs: sequences that run at once. scheduling_policy: who comes first; a built-in name, or one of a package's own.
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    long_prefill_tokens: int | None = None
    scheduling_policy: str = "fcfs"

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "long_prefill_tokens"):
            _whole(name, getattr(self, name), 1)
        _text("scheduling_policy", self.scheduling_policy)


@dataclass(frozen=True)
class ExecutionConfig:
    """What computes, and how.

    platform: a name with options after a colon, or "auto". threads: of a CPU. kernels: op -> the name of the kernel that
    must do it. deterministic: batch-invariant kernels only. seed: for requests that bring none; None: a fresh one each.
    tensor_parallel: devices that share the model, one process each, or all in one where the platform wants that.
    warm_up: compile likely steps before the first request; None: where the platform says that compiling takes long.
    """

    platform: str = "auto"
    tensor_parallel: int = 1
    threads: int | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    deterministic: bool = False
    seed: int | None = None
    warm_up: bool | None = None

    def __post_init__(self) -> None:
        _text("platform", self.platform)
        _whole("tensor_parallel", self.tensor_parallel, 1)
        _whole("threads", self.threads, 1)
        _whole("seed", self.seed, 0)
        _flag("deterministic", self.deterministic)
        if self.warm_up is not None:
            _flag("warm_up", self.warm_up)
        if not isinstance(self.kernels, Mapping):
            raise _wrong("kernels", "a mapping from op to kernel name", self.kernels)
        for op, kernel in self.kernels.items():
            if op not in Spec.families:
                raise ConfigError(f"setting kernels names op {op!r}, which does not exist. {suggest(str(op), Spec.families)}")
            _text(f"kernels[{op!r}]", kernel)
        object.__setattr__(self, "kernels", MappingProxyType(dict(self.kernels)))


@dataclass(frozen=True)
class EngineConfig:
    """All of them. Each subsystem is given its own part."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @classmethod
    def from_kwargs(cls, **names: Any) -> Self:
        """Flat names, as in `LLM(model=..., max_num_seqs=8)`. None means: not given.

        Raises ConfigError for an unknown name, with the nearest one, and for a value that cannot be used.
        """
        homes = {name: table for table, known in _TABLES.items() for name in known}
        parts: dict[str, dict[str, Any]] = {table: {} for table in _TABLES}
        for name, value in names.items():
            if name not in homes:
                raise ConfigError(f"setting {name!r} is unknown. {suggest(name, homes)}")
            if value is not None:
                parts[homes[name]][name] = value
        return cls(**{table: _PARTS[table](**values) for table, values in parts.items()})

    @classmethod
    def resolve(cls, names: Mapping[str, Any], environment: Environment) -> Self:
        """`names` over the environment's platform over a file over the defaults.

        The file is the one that the name `config` gives, otherwise the environment's.
        """
        given = {name: value for name, value in names.items() if value is not None}
        file = given.pop("config", environment.config)
        variables = {"platform": environment.platform} if environment.platform else {}
        return cls.from_kwargs(**{**(read_file(Path(file)) if file else {}), **variables, **given})

    def scheduler(self, max_model_len: int) -> SchedulerConfig:
        """The scheduler's own config, once the model has said how long a sequence may be."""
        said = self.scheduling
        sizes = {name: getattr(said, name) for name in ("max_num_batched_tokens", "max_num_seqs", "long_prefill_tokens")}
        if said.max_num_seqs is None and said.max_num_batched_tokens is not None:
            sizes["max_num_seqs"] = min(SchedulerConfig.max_num_seqs, said.max_num_batched_tokens)
        return SchedulerConfig(
            max_model_len=max_model_len,
            enable_prefix_caching=self.cache.enable_prefix_caching,
            policy=said.scheduling_policy,
            **{name: size for name, size in sizes.items() if size is not None},
        )


_PARTS: dict[str, type] = {
    "model": ModelConfig, "cache": CacheConfig, "scheduling": SchedulingConfig, "execution": ExecutionConfig,
}
_TABLES = {table: tuple(f.name for f in fields(part)) for table, part in _PARTS.items()}
SERVER_TABLE = "serve"


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file as they stand there. Raises ConfigError for one that cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}. Give the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}. Correct it there.") from None


def read_file(path: Path) -> dict[str, Any]:
    """The flat names of a TOML file with the tables [model], [cache], [scheduling] and [execution].

    A table [serve] is the server's to read. Raises ConfigError for unknown tables and keys, with the nearest one.
    """
    flat: dict[str, Any] = {}
    for table, values in read_tables(path).items():
        if table == SERVER_TABLE:
            continue
        if table not in _TABLES:
            home = next((f" It belongs into the table [{home}]." for home, known in _TABLES.items() if table in known), "")
            what = "table" if isinstance(values, dict) else "key"
            raise ConfigError(f"config file {path}: {what} {table!r} is unknown at the top.{home} {suggest(table, _TABLES)}")
        if not isinstance(values, dict):
            raise ConfigError(f"config file {path}: {table!r} must be a table, found {values!r}. Write [{table}] above its keys.")
        for name, value in values.items():
            if name not in _TABLES[table]:
                raise ConfigError(f"config file {path}: key {name!r} of [{table}] is unknown. {suggest(name, _TABLES[table])}")
            flat[name] = value
    return flat


def _wrong(name: str, rule: str, found: object) -> ConfigError:
    return ConfigError(f"setting {name} must be {rule}; found {found!r}.")


def _text(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise _wrong(name, "a string of at least one character", value)


def _whole(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise _wrong(name, f"an integer of at least {least}", value)


def _positive(name: str, value: object, most: float = float("inf")) -> None:
    rule = "a number above 0" + (f" and at most {most:g}" if most < float("inf") else "")
    if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= most):
        raise _wrong(name, rule, value)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)


def _one_of(name: str, value: object, known: Iterable[str]) -> None:
    if value not in (names := tuple(known)):
        raise ConfigError(f"setting {name} must be one of {', '.join(names)}; found {value!r}. {suggest(str(value), names)}")
