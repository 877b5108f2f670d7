"""ServeConfig: the server's own settings, from options, from the table [serve] of a TOML file, and INFERPLANE_API_KEY."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ..core.config import SERVER_TABLE, read_tables
from ..core.env import Environment
from ..errors import ConfigError, suggest

LOG_FORMATS = ("text", "json")


@dataclass(frozen=True)
class ServeConfig:
    """Where to listen, who may ask, and how much.

    served_model_names: what clients call the model; empty: a name made from the model's own.
    api_keys: one of them must come with each request; empty: anyone may ask.
    max_body_bytes: of a request. max_output_tokens: what a request may ask for; None: what the context leaves.
    max_queue: sequences that may wait beyond those that run. max_sequences_per_key: of one key at once; None: no limit.
    max_requests_per_minute, max_tokens_per_minute: of one key (without keys: of all together); None: no limit.
    request_timeout_seconds: from the body's end to the answer's. body_timeout_seconds: for a body to arrive.
    send_timeout_seconds: for a client to take a piece of its answer. step_timeout_seconds: for one step of the engine,
    after which it counts as hung and the server exits. drain_seconds: what SIGTERM leaves to running requests.
    audit_log: a file that gets a JSON line for each request; audit_log_prompts: with its body.
    kv_events: where changes of the prefix cache are told over ZeroMQ (tcp://*:5557), under kv_events_topic.
    otlp_traces_endpoint: an OpenTelemetry collector that gets a span for each request (http://localhost:4318/v1/traces).
    tool_format: how the model writes tool calls; None: as its chat template shows.
    cors_origins: web pages that may ask ("*": all). tls_cert, tls_key: PEM files; with them the server speaks https.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_body_bytes: int = 16 << 20
    max_output_tokens: int | None = None
    max_queue: int = 1024
    max_sequences_per_key: int | None = None
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    request_timeout_seconds: float = 600.0
    body_timeout_seconds: float = 30.0
    send_timeout_seconds: float = 60.0
    step_timeout_seconds: float = 300.0
    drain_seconds: float = 30.0
    cors_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_format: str = "text"
    tool_format: str | None = None
    audit_log: Path | None = None
    audit_log_prompts: bool = False
    otlp_traces_endpoint: str | None = None
    kv_events: str | None = None
    kv_events_topic: str = ""

    def __post_init__(self) -> None:
        for name in ("served_model_names", "api_keys", "cors_origins"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in ("tls_cert", "tls_key"):
            object.__setattr__(self, name, _file(name, getattr(self, name)))
        if not isinstance(self.host, str) or not self.host:
            raise _wrong("host", "a host name or an address", self.host)
        _whole("port", self.port, 0, 65535)
        for name, least in (("max_body_bytes", 1024), ("max_output_tokens", 1), ("max_queue", 0), ("max_sequences_per_key", 1),
                            ("max_requests_per_minute", 1), ("max_tokens_per_minute", 1)):
            _whole(name, getattr(self, name), least)
        for name in (one.name for one in fields(self) if one.name.endswith("_seconds")):
            _seconds(name, getattr(self, name))
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("settings tls_cert and tls_key go together: the certificate and its key. Give both, or neither.")
        if self.tool_format is not None and (not isinstance(self.tool_format, str) or not self.tool_format):
            raise _wrong("tool_format", "a name, for instance hermes", self.tool_format)
        if self.audit_log is not None:
            if not isinstance(self.audit_log, str | Path):
                raise _wrong("audit_log", "the path of a file", self.audit_log)
            object.__setattr__(self, "audit_log", Path(self.audit_log))
        if not isinstance(self.audit_log_prompts, bool) or (self.audit_log_prompts and self.audit_log is None):
            raise _wrong("audit_log_prompts", "true or false, and goes with audit_log", self.audit_log_prompts)
        for name, example in (("kv_events", "tcp://*:5557"), ("otlp_traces_endpoint", "http://localhost:4318/v1/traces")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or "://" not in value):
                raise _wrong(name, f"an address, for instance {example}", value)
        if not isinstance(self.kv_events_topic, str):
            raise _wrong("kv_events_topic", "text", self.kv_events_topic)
        if self.log_format not in LOG_FORMATS:
            raise _wrong("log_format", " or ".join(LOG_FORMATS), self.log_format)

    @classmethod
    def resolve(cls, names: Mapping[str, Any], environment: Environment, file: Path | None = None) -> Self:
        """`names` that are not None, over the environment's key, over the table [serve] of the file.

        file: default, the environment's. Raises ConfigError for an unknown name, with the nearest one.
        """
        path = file or environment.config
        table = read_tables(path).get(SERVER_TABLE, {}) if path else {}
        known = [one.name for one in fields(cls)]
        if not isinstance(table, dict):
            raise ConfigError(f"config file {path}: {SERVER_TABLE!r} must be a table, found {table!r}. Write [{SERVER_TABLE}].")
        for name in table:
            if name not in known:
                raise ConfigError(f"config file {path}: key {name!r} of [{SERVER_TABLE}] is unknown. {suggest(name, known)}")
        key = {"api_keys": [environment.api_key]} if environment.api_key else {}
        return cls(**{**table, **key, **{name: value for name, value in names.items() if value is not None}})

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert else "http"


def _wrong(name: str, rule: str, found: object) -> ConfigError:
    return ConfigError(f"setting {name} must be {rule}; found {found!r}.")


def _names(name: str, values: object) -> tuple[str, ...]:
    """Secrets are among them, so that the message does not repeat what it found."""
    found = (values,) if isinstance(values, str) else values
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) and one.strip() for one in found):
        raise ConfigError(f"setting {name} must be a list of strings of at least one character each.")
    return tuple(found)


def _file(name: str, value: object) -> Path | None:
    if value is None:
        return None
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or not path.is_file():
        raise _wrong(name, "the path of a PEM file", value)
    return path


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise _wrong(name, f"an integer of at least {least}" + (f" and at most {most}" if most else ""), value)


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 7 * 24 * 3600:
        raise _wrong(name, "seconds above 0, at most a week", value)
