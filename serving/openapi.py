"""GET /openapi.json: what the server takes and answers, by https://spec.openapis.org/oas/v3.1.0, from the forms themselves."""
from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse

from .. import __version__
from .protocol.base import Asked, Form
from .protocol.chat import ChatForm
from .protocol.completions import CompletionForm
from .protocol.responses import ResponsesForm
from .protocol.tokens import DetokenizeForm, TokenizeForm

SCHEMAS = "#/components/schemas/"


class Operation(NamedTuple):
    """One method of one path. answer: the names that its object has at least; None: plain text. open: it needs no key."""

    path: str
    summary: str
    answer: tuple[str, ...] | None
    form: type[Form] | None = None
    open: bool = False
    statuses: tuple[int, ...] = ()


CHOICES = ("id", "object", "created", "model", "choices", "usage")
OPERATIONS = (
    Operation("/v1/chat/completions", "The next turn of a conversation", CHOICES, ChatForm),
    Operation("/v1/completions", "Continuations of prompts", CHOICES, CompletionForm),
    Operation("/v1/responses", "The next turn, by OpenAI's newer API", ("id", "object", "status", "output", "usage"), ResponsesForm),
    Operation("/v1/models", "The model's names", ("object", "data")),
    Operation("/v1/models/{name}", "One of them", ("id", "object", "created", "owned_by"), statuses=(404,)),
    Operation("/tokenize", "Text or a conversation as token ids", ("count", "max_model_len", "tokens"), TokenizeForm),
    Operation("/detokenize", "Token ids as text", ("prompt",), DetokenizeForm),
    Operation("/health", "Whether the process is worth keeping", ("status",), open=True, statuses=(503,)),
    Operation("/ready", "Whether it takes requests", ("status",), open=True, statuses=(503,)),
    Operation("/version", "The package's version", ("version",), open=True),
    Operation("/metrics", "Prometheus' text format", None, open=True),
    Operation("/openapi.json", "This description", ("openapi", "info", "paths"), open=True),
)
OF_A_BODY = (400, 404, 408, 413, 415)
OF_AN_ANSWER = (429, 500, 503, 504)
ERROR = {
    "type": "object", "required": ["error"], "additionalProperties": False, "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "additionalProperties": False, "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
    }},
}


@cache
def document() -> dict[str, Any]:
    forms = [one.form for one in OPERATIONS if one.form is not None]
    _, made = models_json_schema([(form, "validation") for form in forms], ref_template=SCHEMAS + "{model}")
    paths = {one.path: {"get" if one.form is None else "post": _described(one)} for one in OPERATIONS}
    return {
        "openapi": "3.1.0", "info": {"title": "Inferplane", "version": __version__}, "paths": paths,
        "components": {
            "schemas": {**made["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(one: Operation) -> dict[str, Any]:
    asked = one.form is not None and issubclass(one.form, Asked)
    statuses = {*one.statuses, *(() if one.open else (401,)), *(OF_A_BODY if one.form else ()), *(OF_AN_ANSWER if asked else ())}
    told: dict[str, Any] = {"summary": one.summary, "responses": {"200": _answer(one, asked)}}
    error = {"description": "What is wrong", "content": {"application/json": {"schema": {"$ref": f"{SCHEMAS}Error"}}}}
    told["responses"] |= {str(status): error for status in sorted(statuses)}
    if one.form is not None:
        schema = {"$ref": f"{SCHEMAS}{one.form.__name__}"}
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{name}" in one.path:
        told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    if not one.open:
        told["security"] = [{"key": []}, {}]
    return told


def _answer(one: Operation, streams: bool) -> dict[str, Any]:
    if one.answer is None:
        return {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object", "required": list(one.answer)}}}
    if streams:
        content["text/event-stream"] = {"schema": {"description": "Server-sent events; the data of each is JSON, or [DONE] at the end"}}
    return {"description": "The answer", "content": content}


async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(document())
