"""GET /v1/models and /v1/models/{name}."""
from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..service import Service


class Models:
    """The one model under each of its names."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def every(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in self.service.names]})

    async def one(self, request: Request) -> JSONResponse:
        name = request.path_params["name"]
        self.service.check_model(name)
        return JSONResponse(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": self.service.created, "owned_by": "inferplane",
            "root": self.service.names[0], "parent": None, "max_model_len": self.service.max_model_len,
        }
