"""The ASGI application: which path leads where, through which layers, and how errors look."""
from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from .answering import Answering
from .fallback import Fallback, http_error
from .guard import Guard
from .journal import Journal
from .openapi import openapi
from .protocol.chat import ChatForm
from .protocol.completions import CompletionForm
from .protocol.responses import ResponsesForm
from .routes.chat import ChatReply
from .routes.completions import CompletionReply
from .routes.console import PAGE, Console
from .routes.health import Health
from .routes.models import Models
from .routes.responses import ResponsesReply
from .routes.tokens import Tokens
from .service import Service

EXPOSED = ("x-request-id", "retry-after")
"""Headers that a web page may read."""


def make_app(service: Service) -> Starlette:
    """From outside in: journal, CORS, fallback, guard, routes."""
    layers = [Middleware(Journal, audit=service.audit, traces=service.traces)]
    if service.config.cors_origins:
        layers.append(Middleware(
            CORSMiddleware, allow_origins=service.config.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=EXPOSED,
        ))
    layers += [Middleware(Fallback), Middleware(Guard, keys=service.keys)]
    app = Starlette(routes=_routes(service), middleware=layers, exception_handlers={HTTPException: http_error})
    app.router.redirect_slashes = False
    return app


def _routes(service: Service) -> Sequence[BaseRoute]:
    models, tokens, health, console = Models(service), Tokens(service), Health(service), Console(service)
    return [
        Route("/v1/chat/completions", Answering(service, ChatForm, ChatReply), methods=["POST"]),
        Route("/v1/completions", Answering(service, CompletionForm, CompletionReply), methods=["POST"]),
        Route("/v1/responses", Answering(service, ResponsesForm, ResponsesReply), methods=["POST"]),
        Route("/v1/models", models.every),
        Route("/v1/models/{name:path}", models.one),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/health", health.health),
        Route("/ready", health.ready),
        Route("/version", health.version),
        Route("/metrics", health.metrics),
        Route("/openapi.json", openapi),
        *(Route(path, console.file, include_in_schema=False) for path in PAGE),
        Route("/console/about", console.about, include_in_schema=False),
    ]
