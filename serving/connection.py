"""A client's connection: uvicorn's protocol over httptools, with bounds that uvicorn leaves open, on heads and beside bodies."""
from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import Refused
from .stream import ENCODE

MOST_HEAD_BYTES = 64 << 10
MOST_BESIDE = 8
"""Bytes of chunks' heads to one of a body."""
HEAD_SECONDS = 10.0
"""From a connection, or a head's first byte, to its last."""


class Connection(HttpToolsProtocol):
    """Closes when a head is too long or too slow."""

    _head_bytes: int | None = None
    """So far; None: no head is under way."""
    _beside_left = 0
    """Bytes that may yet come while no more of a body does: heads of chunks, their extensions, trailers."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._close(Refused(431, f"the request's head is longer than {MOST_HEAD_BYTES} bytes", code="head_too_large"))
        elif not self.transport.is_closing():
            self._beside_left -= len(data)
            if self._beside_left < 0:
                self._close(Refused(400, "the body has far more around it than in it", code="invalid_http"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._head_bytes, self._beside_left = None, 2 * MOST_HEAD_BYTES
        self._stop_waiting()
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """What stands behind the body is no header, whatever its name."""
        if self._head_bytes is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._beside_left += (1 + MOST_BESIDE) * len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._close(Refused(400, msg, code="invalid_http"))

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        late = Refused(408, f"no request arrived within {HEAD_SECONDS:g} s", code="head_timeout")
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close, late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, refusal: Refused) -> None:
        """An answer that no application had a part in, and the end."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
            return
        body = ENCODE(refusal.body()).encode()
        head = f"HTTP/1.1 {refusal.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
