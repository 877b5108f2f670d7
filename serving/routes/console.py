"""GET / and /console/...: a page to try the model and to watch the server, and what it shows of platform and kernels."""
from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from ..service import Service

FOLDER = Path(__file__).parent.parent / "console"
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
NAMES = ("style.css", "chat.js", "talk.js", "server.js", "charts.js", "live.js", "about.js", "icon.svg")
PAGE = {"/": "page.html", **{f"/console/{name}": name for name in NAMES}}
"""The file behind each path."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin", "cache-control": "no-cache",
}
"""Nothing from another host, no script in the page, no text that becomes markup."""


class Console:
    """The page is the same for all and needs no key; what it asks for afterwards does."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._files = {path: (FOLDER / name).read_bytes() for path, name in PAGE.items()}

    async def file(self, request: Request) -> Response:
        path = request.url.path
        return Response(self._files[path], media_type=TYPES[Path(PAGE[path]).suffix], headers=HEADERS)

    async def about(self, request: Request) -> JSONResponse:
        """What the server is made of, and which kernel serves each op."""
        service, started = self.service, self.service.engine.started
        loaded, layout = started.loaded, started.layout
        tool_format = service.tool_format
        return JSONResponse({
            "version": __version__, "models": service.names, "family": type(loaded.model).__name__, "dtype": loaded.model.dtype,
            "platform": loaded.platform.name, "max_model_len": service.max_model_len, "created": service.created,
            "kv": {"bytes": layout.memory_bytes, "tokens": layout.capacity_tokens, "block_tokens": loaded.states[0].block_tokens,
                   "prefix_cache": service.engine.config.cache.enable_prefix_caching},
            "running": service.gate.running, "queue": service.config.max_queue,
            "tool_format": tool_format.name if tool_format else None,
            "kernels": loaded.resolution.rows(),
        }, headers={"cache-control": "no-store"})
