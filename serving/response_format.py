"""What an answer must be: OpenAI's response format, or vLLM's structured_outputs, as the engine's `StructuredOutputs`."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.structured import StructuredOutputs
from .errors import Refused
from .protocol.base import Generation

KINDS = "text, json_object, json_schema with its schema, regex with its regex, or grammar with its grammar"


def answer_of(kind: object, said: Mapping[str, Any], param: str) -> StructuredOutputs | None:
    """Of a response format; None: anything may be said. said: what stands beside its kind. param: where a client wrote it.

    Raises `Refused`, or `RequestError` for what cannot be meant.
    """
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return StructuredOutputs(json={"type": "object"})
    schema, regex, grammar = (said.get(name) for name in ("schema", "regex", "grammar"))
    if kind == "json_schema" and isinstance(schema, Mapping):
        return StructuredOutputs(json=schema)
    if kind == "regex" and isinstance(regex, str):
        return StructuredOutputs(regex=regex)
    if kind == "grammar" and isinstance(grammar, str):
        return StructuredOutputs(grammar=grammar)
    raise Refused(400, f"{param} must be of type {KINDS}", code="invalid_value", param=param)


def answer_of_form(form: Generation) -> StructuredOutputs | None:
    """Of chat and plain completions. Raises `Refused` where both are given: one of them would be left out."""
    given, beside = form.response_format, form.structured_outputs
    said = {} if given is None else {
        "schema": given.json_schema.definition if given.json_schema else None, "regex": given.regex, "grammar": given.grammar}
    found = answer_of(given.type if given else None, said, "response_format")
    if beside is None:
        return found
    if found is not None:
        raise Refused(400, "response_format and structured_outputs both say what the answer must be; send one of them",
                      code="invalid_value", param="structured_outputs")
    return StructuredOutputs(json=beside.definition, regex=beside.regex, choice=beside.choice, grammar=beside.grammar)
