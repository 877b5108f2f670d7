"""Service: the engine with what stands around it, handed to every route."""
from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .. import __version__
from ..core.async_engine import AsyncEngine
from ..core.tokenizer import Tokenizer
from ..errors import RequestError
from .audit import Audit
from .config import ServeConfig
from .errors import Refused
from .gate import Gate
from .keys import Keys
from .kv_events import KVEvents
from .metrics import Metrics
from .rates import Rates
from .traces import Traces
from .turns.format import Format
from .turns.formats import format_named, format_of

EMBEDDED = "tiny"
"""What the model is called that comes with the package."""


@dataclass(frozen=True)
class Service:
    """Made once for a server."""

    engine: AsyncEngine
    config: ServeConfig
    names: tuple[str, ...]
    """What clients may call the model; answers say the first."""
    gate: Gate
    keys: Keys
    metrics: Metrics
    audit: Audit | None = None
    kv_events: KVEvents | None = None
    traces: Traces | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""

    @classmethod
    def of(cls, engine: AsyncEngine, config: ServeConfig) -> Service:
        names = config.served_model_names or (_name(engine.config.model.model),)
        running = engine.config.scheduler(engine.started.loaded.max_model_len).max_num_seqs
        rates = Rates(config.max_requests_per_minute, config.max_tokens_per_minute)
        gate = Gate(running=running, queue=config.max_queue, per_key=config.max_sequences_per_key, rates=rates)
        audit = Audit(config.audit_log, prompts=config.audit_log_prompts) if config.audit_log else None
        traces = Traces(config.otlp_traces_endpoint) if config.otlp_traces_endpoint else None
        events = KVEvents(config.kv_events, config.kv_events_topic) if config.kv_events else None
        made = cls(engine, config, names, gate, Keys(config.api_keys), Metrics(engine, gate, names[0]), audit, events, traces)
        if events:
            engine.listen(events)
        _ = made.tool_format  # an unknown name is told before anyone asks
        return made

    def close(self) -> None:
        for one in (self.kv_events, self.traces):
            if one is not None:
                one.close()

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever may change the tokens that a seed draws."""
        loaded = self.engine.started.loaded
        said = f"{__version__} {loaded.platform.name} {loaded.fingerprint} {loaded.model.dtype}"
        return f"fp_{hashlib.sha256(said.encode()).hexdigest()[:10]}"

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self.engine.engine.tokenizer
        if tokenizer is None:
            raise RequestError("this model has no tokenizer. Start the server with --tokenizer, or send token ids.")
        return tokenizer

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The model's chat templates."""
        template = self.engine.started.chat_template
        return tuple(template.templates.values()) if template else ()

    @cached_property
    def tool_format(self) -> Format | None:
        """How the model writes tool calls: as the settings say, otherwise as its chat template shows."""
        return format_named(self.config.tool_format) if self.config.tool_format else format_of(self.templates)

    @property
    def max_model_len(self) -> int:
        return self.engine.started.loaded.max_model_len

    def check_model(self, name: str | None) -> None:
        """Raises `Refused` for a model that is not served here. A request that names none means this one."""
        if name is not None and name not in self.names:
            raise Refused(404, f"The model {name[:80]!r} does not exist. Served here: {', '.join(self.names)}.",
                          code="model_not_found", param="model")


def _name(model: str | None) -> str:
    """A hub name as it is, of a path what it ends with."""
    if model is None:
        return EMBEDDED
    path = Path(model).expanduser()
    return path.resolve().name.removesuffix(".gguf") if path.exists() else model
