"""A request's body: JSON, not too long, and not too slow."""
from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from .config import ServeConfig
from .errors import ClientGone, Refused

CLOSE = {"connection": "close"}
"""What was not read cannot be skipped cheaply."""


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """Raises `Refused`: 415 for another type, 413 beyond the limit, 408 where it does not arrive."""
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the body must be of type application/json; found {kind[:80] or 'none'!r}", code="invalid_content_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body must not be compressed", code="invalid_content_encoding")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > config.max_body_bytes:
        raise _too_long(config)
    try:
        async with asyncio.timeout(config.body_timeout_seconds):
            return await _collect(request, config)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {config.body_timeout_seconds:g} s", code="body_timeout",
                      headers=CLOSE) from None
    except ClientDisconnect:
        raise ClientGone from None


async def _collect(request: Request, config: ServeConfig) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > config.max_body_bytes:
            raise _too_long(config)
        pieces.append(piece)
    return b"".join(pieces)


def _too_long(config: ServeConfig) -> Refused:
    return Refused(413, f"the body is longer than {config.max_body_bytes} bytes, the limit of this server",
                   code="body_too_large", headers=CLOSE)
