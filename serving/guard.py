"""The guard: asks for the API key wherever tokens are drawn or made."""
from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import Refused
from .keys import Keys
from .routes.console import PAGE

OPEN = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json", *PAGE})
"""For probes, scrapers and readers, and the console's files, which are the same everywhere. Whatever else there is, or is added
one day, needs a key."""


class Guard:
    """Puts the name of the key's owner into scope["state"]["key"]. Raises `Refused`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["key"] = "" if scope["path"] in OPEN else self._owner(scope)
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        found = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(found) > 1:
            raise Refused(400, "the header Authorization came more than once", code="invalid_header")
        return self.keys.owner(found[0].decode("latin-1") if found else None)
