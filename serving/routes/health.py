"""GET /health, /ready, /version and /metrics: for whoever runs the server."""
from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from ..errors import Refused
from ..service import Service


class Health:
    """/health: the process is worth keeping. /ready: it takes requests."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, request: Request) -> JSONResponse:
        if self.service.engine.engine.closed:
            raise Refused(503, "the engine has stopped; the log tells why", code="engine_stopped")
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> JSONResponse:
        if self.service.gate.closed:
            raise self.service.gate.closed
        await self.health(request)
        return JSONResponse({"status": "ready"})

    async def version(self, request: Request) -> JSONResponse:
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        return Response(await self.service.metrics.scrape(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
