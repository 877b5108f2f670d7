"""`inferplane serve`: the OpenAI-compatible server, from options to an exit code."""
from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    import socket

    from ..core.async_engine import AsyncEngine
    from ..serving.config import ServeConfig
    from ..serving.service import Service

EXAMPLES = """\
examples:
  inferplane serve
  inferplane serve ./Llama-3.2-1B-Instruct --platform cpu --quantization int8 --port 9000
  INFERPLANE_API_KEY=secret inferplane serve org/name --host 0.0.0.0 --served-model-name chat
  inferplane serve --config serve.toml

then, from anywhere:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "Hello"}]}'
  OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret")      # the official client, unchanged

what it answers:
  /v1/chat/completions /v1/completions /v1/responses /v1/models /tokenize /detokenize      with a key, if there is one
  /health /ready /version /metrics /openapi.json                                           without
  /  a page to try the model, with live charts, for a browser

A file given with --config has a table [serve] with these options' names (max_queue = 64) beside [model], [cache],
[scheduling] and [execution]. Options go before the environment, and that before the file.

SIGTERM lets running requests end for --drain-seconds while new ones get 503; a second one ends them.
Exit codes: 0 stopped, 1 it could not start, or the engine failed, 2 wrong usage.
"""
OPTIONS = (
    "host", "port", "served_model_names", "api_keys", "max_body_bytes", "max_output_tokens", "max_queue", "max_sequences_per_key",
    "request_timeout_seconds", "body_timeout_seconds", "send_timeout_seconds", "step_timeout_seconds", "drain_seconds",
    "cors_origins", "tls_cert", "tls_key", "log_format", "tool_format", "max_requests_per_minute", "max_tokens_per_minute", "audit_log",
    "audit_log_prompts", "kv_events", "kv_events_topic", "otlp_traces_endpoint",
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="serve OpenAI's API", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve a model to every OpenAI client. Without MODEL it is the embedded one.",
    )
    parser.add_argument("served", nargs="?", metavar="MODEL", help="the same as --model")
    group = parser.add_argument_group("server")
    group.add_argument("--host", metavar="H", help="the address to listen on (default: 127.0.0.1; 0.0.0.0: all)")
    group.add_argument("--port", type=int, metavar="N", help="(default: 8000; 0: any that is free)")
    group.add_argument("--api-key", action="append", dest="api_keys", metavar="K",
                       help="clients must send it; repeatable. INFERPLANE_API_KEY is safer: options are seen by other users")
    group.add_argument("--served-model-name", action="append", dest="served_model_names", metavar="M",
                       help="what clients call the model; repeatable")
    group.add_argument("--cors-origin", action="append", dest="cors_origins", metavar="URL", help="a web page that may ask; repeatable")
    group.add_argument("--tls-cert", type=Path, metavar="PEM", help="with --tls-key: speak https")
    group.add_argument("--tls-key", type=Path, metavar="PEM")
    group.add_argument("--log-format", choices=("text", "json"))
    group.add_argument("--audit-log", type=Path, metavar="FILE", help="append a JSON line for each request, without prompts")
    group.add_argument("--audit-log-prompts", action="store_true", default=None, help="with --audit-log: the bodies of requests, too")
    group.add_argument("--kv-events", metavar="ADDRESS", help="tell routers of the prefix cache over ZeroMQ: tcp://*:5557")
    group.add_argument("--kv-events-topic", metavar="T", help="what they filter by (default: empty)")
    group.add_argument("--otlp-traces-endpoint", metavar="URL", help="an OpenTelemetry collector that gets a span for each request")
    group.add_argument("--tool-format", metavar="NAME", help="how the model writes tool calls: hermes, llama3_json, pythonic, mistral, "
                       "deepseek, or an installed one (default: as its chat template shows)")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-queue", type=int, metavar="N", help="sequences that may wait; beyond them 429 (default: 1024)")
    limits.add_argument("--max-sequences-per-key", type=int, metavar="N", help="of one API key at once (default: no limit)")
    limits.add_argument("--max-requests-per-minute", type=int, metavar="N", help="of one API key; beyond them 429 (default: no limit)")
    limits.add_argument("--max-tokens-per-minute", type=int, metavar="N", help="of one API key, prompts and answers (default: no limit)")
    limits.add_argument("--max-output-tokens", type=int, metavar="N", help="of one answer (default: what the context leaves)")
    limits.add_argument("--max-body-bytes", type=int, metavar="N", help="of a request (default: 16 MiB)")
    for name, text in (
        ("request-timeout-seconds", "for an answer (default: 600)"), ("body-timeout-seconds", "for a body to arrive (default: 30)"),
        ("send-timeout-seconds", "for a client to take a piece of its answer (default: 60)"),
        ("step-timeout-seconds", "for a step, beyond which the server gives up (default: 300)"),
        ("drain-seconds", "that SIGTERM leaves to running requests (default: 30)"),
    ):
        limits.add_argument(f"--{name}", type=float, metavar="S", help=text)
    settings.add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..core.env import Environment
    from ..errors import ConfigError

    if args.served is not None and args.model is not None:
        raise ConfigError(f"the model is given twice, as {args.served!r} and as --model {args.model!r}. Give it once.")
    args.model = args.served if args.model is None else args.model
    try:
        from ..serving.app import make_app
        from ..serving.config import ServeConfig
        from ..serving.journal import log_to_stderr
        from ..serving.server import bind
        from ..serving.server import run as serve
        from ..serving.service import Service
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs the package {error.name!r}. Install it: pip install 'inferplane[serve]'") from None

    environment = Environment.read()
    config = ServeConfig.resolve({name: getattr(args, name) for name in OPTIONS}, environment, args.config)
    log_to_stderr(config.log_format, environment.log)
    with bind(config) as bound:
        began = time.perf_counter()
        _say("loading", args.model or "the embedded model")
        engine = _engine(args)
        try:
            service = Service.of(engine, config)
            with closing(service):
                _describe(service, time.perf_counter() - began)
                return serve(make_app(service), service, bound, lambda: _invite(service, bound))
        finally:
            engine.close()


def _engine(args: argparse.Namespace) -> AsyncEngine:
    from ..core.async_engine import AsyncEngine

    return AsyncEngine(show_progress=sys.stderr.isatty(), **settings.names(args))


def _say(what: str, text: str) -> None:
    print(f"{what:>10}  {text}", file=sys.stderr, flush=True)


def _describe(service: Service, seconds: float) -> None:
    """What came of the settings, before anybody asks."""
    started, config, engine = service.engine.started, service.config, service.engine.config
    loaded, layout = started.loaded, started.layout
    kernels = sorted({choice.name for choice in loaded.resolution})
    _say("model", f"{', '.join(service.names)}: {type(loaded.model).__name__}, {loaded.model.dtype}, loaded in {seconds:.1f} s")
    _say("platform", f"{loaded.platform.name}, {len(kernels)} kernels; `inferplane platforms --model ...` tells which, and why")
    caching = "with" if engine.cache.enable_prefix_caching else "without"
    _say("KV cache", f"{layout.memory_bytes / 1e9:.2f} GB, {layout.capacity_tokens:,} tokens in blocks of "
                     f"{loaded.states[0].block_tokens}, {caching} prefix cache")
    _say("limits", f"{service.gate.running} sequences at once, {config.max_queue} waiting, {service.max_model_len:,} tokens each")
    _say("keys", _keys(service, config))


def _keys(service: Service, config: ServeConfig) -> str:
    if count := len(service.keys):
        return "one key opens it" if count == 1 else f"{count} keys open it"
    local = config.host in ("127.0.0.1", "::1", "localhost")
    return "none: every program on this machine may ask" if local else \
        "NONE, and other machines can reach it: whoever finds it may ask. Set INFERPLANE_API_KEY"


def _invite(service: Service, bound: socket.socket) -> None:
    from ..serving.server import url

    where = url(service.config, bound)
    _say("ready", f"{where}/v1    the console: {where}/    Ctrl-C stops")
