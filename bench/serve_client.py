"""A client of a server: one streamed completion after the other over kept connections, and when each piece of it came."""
from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2

from ..errors import ConfigError

REFUSED_KEYS = (401, 403)
KEPT_SECONDS = 2.0
"""That an idle connection is used again. Servers close theirs after five, and a request that crosses the closing is lost."""


@dataclass
class Trip:
    """One request, in seconds of `time.perf_counter`. due: when it should have been sent. arrivals: of each piece with tokens.

    ended: None while it is under way. error: its kind, such as `429 queue_full`, where it was not answered to the end.
    """

    due: float
    prompt_tokens: int = 0
    sent: float | None = None
    arrivals: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    output_tokens: int = 0
    ended: float | None = None
    error: str | None = None
    said: str = ""
    """What the server said to an error."""


class Client:
    """Sends to one server. ids: ask for the ids of the answers; where a server does not know how, a piece counts as a token."""

    def __init__(
        self, url: str, *, key: str | None = None, model: str | None = None, timeout_seconds: float = 600.0, ids: bool = True,
    ) -> None:
        self.url, self.model = url, model
        self.max_model_len: int | None = None
        self._ids, self._timeout_seconds = ids, timeout_seconds
        self._http = httpx2.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=timeout_seconds,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_SECONDS),
            trust_env=False, verify=ssl.create_default_context(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def meet(self) -> str:
        """Makes sure of the server, its key and its model, whose name is returned. Raises `ConfigError`."""
        try:
            answer = await self._http.get("/v1/models", timeout=min(20.0, self._timeout_seconds))
        except httpx2.HTTPError as error:
            raise ConfigError(f"no server answers at {self.url}: {_why(error)}. Start one with `inferplane serve`, correct --url, or leave "
                              "--url out: then one is started for the run.") from None
        if answer.status_code in REFUSED_KEYS:
            raise ConfigError(f"{self.url} refused the key ({answer.status_code}). Give it with --api-key, or in INFERPLANE_API_KEY.")
        try:
            lengths = {str(one["id"]): one.get("max_model_len") for one in answer.json()["data"]}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(f"{self.url}/v1/models answered {answer.status_code}, and no list of models. Give --url the address of a "
                              "server that speaks OpenAI's API.") from None
        if not lengths:
            raise ConfigError(f"{self.url} serves no model. Load one there first.")
        if self.model is not None and self.model not in lengths:
            raise ConfigError(f"{self.url} serves no model {self.model!r}. It serves: {', '.join(lengths)}.")
        self.model = self.model or next(iter(lengths))
        self.max_model_len = lengths[self.model]
        return self.model

    async def get(self, path: str) -> httpx2.Response:
        return await self._http.get(path)

    async def ask(self, trip: Trip, prompt: Sequence[int], tokens: int) -> None:
        """Fills the trip in as its answer comes. Never raises for what a server does."""
        body: dict[str, Any] = {
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ids:
            body["return_token_ids"] = True
        trip.prompt_tokens, trip.sent = len(prompt), time.perf_counter()
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    trip.error, trip.said = refusal(answer.status_code, await answer.aread())
                else:
                    await _follow(trip, answer)
        except httpx2.TimeoutException:
            trip.error = "timeout"
        except httpx2.HTTPError as error:
            trip.error, trip.said = "connection", _why(error)
        except (ValueError, LookupError, TypeError, AttributeError):
            trip.error, trip.said = "stream unreadable", "an event is not what OpenAI's API sends"
        trip.ended = time.perf_counter()


async def _follow(trip: Trip, answer: httpx2.Response) -> None:
    """Until the stream says that it is done."""
    done, usage = False, None
    async for event in events(answer.aiter_raw()):
        if event == b"[DONE]":
            done = True
            continue
        found = json.loads(event)
        if "error" in found:
            trip.error, trip.said = _named("stream", found)
            continue
        usage = found.get("usage") or usage
        if any(choice.get("text") or choice.get("token_ids") for choice in found.get("choices", ())):
            trip.arrivals.append(time.perf_counter())
            trip.ids += [one for choice in found["choices"] for one in choice.get("token_ids") or ()]
    trip.output_tokens = usage["completion_tokens"] if usage else len(trip.ids) or len(trip.arrivals)
    if trip.error is None and not (done and trip.arrivals):
        trip.error = "stream cut" if trip.arrivals else "no token"


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, however the bytes were cut."""
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield line[5:].strip()


def refusal(status: int, body: bytes) -> tuple[str, str]:
    """(the kind, what was said) of an answer that is none."""
    try:
        return _named(str(status), json.loads(body))
    except ValueError:
        return str(status), body[:200].decode(errors="replace")


def _named(kind: str, body: object) -> tuple[str, str]:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return kind, str(body)[:200]
    code = error.get("code") or error.get("type") or ""
    return f"{kind} {code}".strip(), str(error.get("message", ""))[:500]


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
