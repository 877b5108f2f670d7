"""The journal: a request id for each request, and one line when it ends. No prompts, no keys."""
from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .audit import Audit, Tally
from .guard import OPEN
from .traces import Traces

LOG = logging.getLogger("inferplane.serving.requests")
HEADER = b"x-request-id"
USABLE = re.compile(rb"[!-~]{1,128}")
"""A client's own id that may go into a header and a log."""
GONE = 499
"""The status in the journal where the client left first, as nginx has it."""
SHOWN_CHARACTERS = 200
"""Of a path."""


class Journal:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, audit: Audit | None = None, traces: Traces | None = None) -> None:
        self.app, self.audit, self.traces = app, audit, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        identity = next((value for name, value in scope["headers"] if name == HEADER and USABLE.fullmatch(value)), None)
        identity = identity or f"req-{secrets.token_hex(12)}".encode()
        state = scope["state"] = {**scope.get("state", {}), "gone": False, "tally": Tally()}

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (HEADER, identity)]}
            await send(message)

        try:
            await self.app(scope, receive, tell)
        finally:
            fields = {
                "request_id": identity.decode(), "method": scope["method"], "path": scope["path"][:SHOWN_CHARACTERS],
                "status": GONE if state["gone"] else status, "seconds": round(time.monotonic() - began, 6),
            }
            LOG.info("request", extra={"fields": fields})
            if self.audit and scope["path"] not in OPEN:
                self.audit.write({**fields, "key": state.get("key", "")}, state["tally"])
            if self.traces and scope["path"] not in OPEN:
                self.traces.write(fields, state["tally"], scope["headers"])


class JsonLines(logging.Formatter):
    """One JSON object a line, with the fields of a record beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(), **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in getattr(record, "fields", {}).items())
        return super().format(record) + fields


def log_to_stderr(log_format: str, level: str) -> None:
    """For the whole process. level: of whatever is not ours; requests are told from info on."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
