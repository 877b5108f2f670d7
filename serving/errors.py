"""Errors as OpenAI's clients know them: {"error": {"message", "type", "param", "code"}} and a status."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from ..core.request import SamplingParams
from ..errors import CapacityError, EngineError, InferplaneError, PromptTooLong, RequestError

LOG = logging.getLogger("inferplane.serving")
SERVER_ERROR = "server_error"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
SHOWN_CHARACTERS = 80
"""Of a value that a message repeats."""
PARAMETERS = frozenset(one.name for one in fields(SamplingParams))


class Refused(Exception):
    """An answer that is an error, with the status to send."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, SERVER_ERROR if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def refused(error: Exception) -> Refused:
    """What a client is told. Of an error that nobody foresaw it learns nothing: the log is told."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, PromptTooLong):
        return Refused(400, str(error), code="context_length_exceeded")
    if isinstance(error, CapacityError):
        return Refused(400, str(error), code="capacity_exceeded")
    if isinstance(error, RequestError):
        first = str(error).split(maxsplit=1)[0] if str(error) else ""
        return Refused(400, str(error), code="invalid_value", param=first if first in PARAMETERS else None)
    LOG.error("a request failed", exc_info=error)
    if isinstance(error, EngineError):
        return Refused(500, str(error), code="engine_error")
    if isinstance(error, InferplaneError):
        return Refused(500, str(error), code="internal_error")
    return Refused(500, "the server failed on this request; its log tells why", code="internal_error")


CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def refused_form(error: ValidationError) -> Refused:
    """The first thing that is wrong with a body, by its path as OpenAI writes it: messages[0].content."""
    first = min(error.errors(include_url=False, include_context=False), key=lambda one: _order(one["type"]))
    param = _path(first["loc"])
    code = CODES.get(first["type"], "invalid_type" if first["type"].endswith("_type") else "invalid_value")
    if code == "missing_required_parameter":
        message = f"the required parameter {param!r} is missing"
    elif code == "unknown_parameter":
        message = f"Unrecognized request argument supplied: {param}"
    else:
        message = f"Invalid value for {param!r}: {first['msg']}; found {_shown(first['input'])}"
    return Refused(400, message, code=code, param=param)


def _order(kind: str) -> int:
    """Of several alternatives that all failed, the one that fits best says most: what is not even of its type comes last."""
    return 2 if kind.endswith("_type") else 1 if kind == "extra_forbidden" else 0


def _path(places: tuple[int | str, ...]) -> str:
    """Pydantic also names the alternatives of a union, `list[int]` or `constrained-str`, which are no keys."""
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
        elif place.isidentifier() and place not in ("str", "int", "float", "bool", "dict", "function"):
            path += f".{place}" if path else place
    return path or "body"


def _shown(value: object) -> str:
    """Bounded before it is spelled: a value may be as large as a body."""
    if isinstance(value, list | dict):
        return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]!r}... ({len(value)} characters)"
    return repr(value)[:SHOWN_CHARACTERS]
