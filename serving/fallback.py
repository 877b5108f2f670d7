"""The fallback: whatever a request raises becomes an answer of OpenAI's shape, and never a traceback."""
from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refused, refused

SAID = {404: "there is nothing at this path", 405: "this path does not take the method {method}"}


class Fallback:
    """A layer. What is raised after an answer has begun goes on: the connection is cut."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await error_response(refused(error))(scope, receive, send)


def error_response(refusal: Refused) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """The router's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    said = SAID.get(error.status_code, str(error.detail)).format(method=request.method[:20])
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(Refused(error.status_code, said, code=code, headers=error.headers))
