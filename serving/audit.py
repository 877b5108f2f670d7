"""The audit log: who asked for what, and what came of it, one JSON line a request. Prompts only where that is wanted."""
from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.output import RequestMetrics, RequestOutput
from ..errors import ConfigError

LOG = logging.getLogger("inferplane.serving")


@dataclass
class Tally:
    """What one request asked for and got, as far as it is known."""

    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    body: bytes = b""
    """Empty where prompts are not logged."""
    times: list[RequestMetrics] = field(default_factory=list)
    """One for each prompt."""

    def add(self, output: RequestOutput) -> int:
        """The tokens of this prompt and of its answers."""
        prompt, drawn = len(output.prompt_token_ids), sum(len(choice.token_ids) for choice in output.outputs)
        self.prompt_tokens += prompt
        self.completion_tokens += drawn
        self.times.append(output.metrics)
        return prompt + drawn


class Audit:
    """A file that only its owner reads; lines are appended whole. prompts: bodies of requests are part of it."""

    def __init__(self, path: Path, *, prompts: bool) -> None:
        self.prompts = prompts
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"the audit log {str(path)!r} cannot be written: {error.strerror}. Name a file in a folder that exists.") \
                from None

    def write(self, fields: dict[str, Any], tally: Tally) -> None:
        """fields: of the journal. A disk that is full is told in the log, and costs no request."""
        told = {
            "time": datetime.now(UTC).isoformat(), **fields, "model": tally.model, "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens, **({"body": _text(tally.body)} if self.prompts else {}),
        }
        try:
            os.write(self._file, (json.dumps(told, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        except OSError as error:
            LOG.error("the audit log could not be written: %s", error.strerror)


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")
