"""POST /v1/responses: the next turn; as a whole, or as the events that OpenAI's clients follow."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.output import CompletionOutput, RequestOutput
from ..answering import Ask, Reply
from ..conversation import prompt_ids
from ..errors import Refused
from ..protocol.responses import ResponsesForm
from ..response_format import answer_of
from ..sampling import sampling
from ..service import Service
from ..stream import Event
from ..turn import Wanted, choice_of, turn_of
from ..turns.reader import Piece, Words
from ..wording import Told, chat_logprobs, new_id, reasoning_tokens, usage
from .response_input import messages, tools
from .response_output import Logprobs, Output

LOGPROBS = "message.output_text.logprobs"
"""What `include` may ask for."""


class ResponsesReply(Reply):
    """One turn."""

    done = ""

    def __init__(self, service: Service, form: ResponsesForm) -> None:
        _refuse_unsupported(form)
        wanted = _wanted(form)
        ids = prompt_ids(service, messages(form), wanted.offered, add_generation_prompt=True, variables=form.chat_template_kwargs)
        turn = turn_of(service, wanted, ids)
        self.top = (form.top_logprobs or 0) if form.top_logprobs or LOGPROBS in (form.include or ()) else None
        params = sampling(service, form, longest_prompt=len(ids), max_tokens=form.max_output_tokens, default_tokens=None, logprobs=self.top)
        self.ask = Ask((ids,), turn.sampling(params), form.priority, form.cache_salt)
        self.streamed = bool(form.stream)
        self.tokenizer = service.tokenizer
        self.reader = turn.reader() if turn.reader else None
        self.told, self.number = Told(1), 0
        self.output = Output(self._event)
        self.head: dict[str, Any] = {
            "id": new_id("resp"), "object": "response", "created_at": int(time.time()), "model": service.names[0], "error": None,
            "instructions": form.instructions, "max_output_tokens": form.max_output_tokens, "metadata": form.metadata or {},
            "parallel_tool_calls": wanted.parallel, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
            "store": False, "temperature": params.temperature, "top_p": params.top_p,
            "text": {"format": form.text.format if form.text and form.text.format else {"type": "text"}},
            "tool_choice": form.tool_choice or "auto", "tools": [_tool(tool.model_dump()) for tool in form.tools or ()],
            "truncation": form.truncation or "disabled", "user": form.user, "background": False,
        }

    def grew(self, place: int, output: RequestOutput) -> Sequence[Event]:
        events = [] if self.number else self._opening()
        for choice, told in self.told.news(output, each_token=self.top is not None):
            events += self.output.take(self._read(choice, choice.delta), self._logprobs(choice, told))
        if output.finished:
            [choice] = output.outputs
            events += self.output.end(choice.finish_reason == "length")
            whole = self._response(output)
            events.append(self._event(f"response.{whole['status']}", response=whole))
        return events

    def whole(self, outputs: Sequence[RequestOutput]) -> Mapping[str, Any]:
        [output] = outputs
        [choice] = output.outputs
        self.output.take(self._read(choice, choice.text), self._logprobs(choice, 0))
        self.output.end(choice.finish_reason == "length")
        return self._response(output)

    def _opening(self) -> list[Event]:
        begun = {**self.head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def _read(self, choice: CompletionOutput, text: str) -> list[Piece]:
        if self.reader is None:
            return [Words(text)] if text else []
        return self.reader.push(text) + (self.reader.finish() if choice.finish_reason else [])

    def _response(self, output: RequestOutput) -> dict[str, Any]:
        [choice] = output.outputs
        cut = choice.finish_reason == "length"
        return {
            **self.head, "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self.output.told(), "usage": _usage(output, reasoning_tokens(self.tokenizer, self.reader, choice.token_ids)),
        }

    def _event(self, kind: str, **fields: Any) -> Event:
        self.number += 1
        return Event({"type": kind, "sequence_number": self.number - 1, **fields}, kind)

    def _logprobs(self, choice: CompletionOutput, told: int) -> Logprobs:
        if self.top is None:
            return []
        found: Logprobs = chat_logprobs(self.tokenizer, (choice.logprobs or ())[told:], self.top)["content"]
        return found


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "strict": bool(given["strict"])}


def _usage(output: RequestOutput, reasoning: int) -> dict[str, Any]:
    """By this API's names."""
    found = usage([output], reasoning)
    return {
        "input_tokens": found["prompt_tokens"], "input_tokens_details": found["prompt_tokens_details"],
        "output_tokens": found["completion_tokens"], "output_tokens_details": found["completion_tokens_details"],
        "total_tokens": found["total_tokens"],
    }


def _wanted(form: ResponsesForm) -> Wanted:
    said = (form.text and form.text.format) or {}
    choice, answer = choice_of(form.tool_choice, lambda given: given.get("name")), answer_of(said.get("type"), said, "text.format")
    return Wanted(tools(form), **choice, parallel=form.parallel_tool_calls is not False, answer=answer)


def _refuse_unsupported(form: ResponsesForm) -> None:
    """What would change the answer and is not there is refused; nothing is left out silently."""
    refusals = (
        ("previous_response_id", form.previous_response_id, "answers are not stored; send the conversation as input"),
        ("conversation", form.conversation, "conversations are not stored; send them as input"),
        ("store", form.store, "answers are not stored; set store to false"),
        ("background", form.background, "answers are given while the client waits"),
    )
    for name, value, why in refusals:
        if value:
            raise Refused(400, f"{name} is not supported: {why}", code="unsupported_value", param=name)
    for name in form.include or ():
        if name not in (LOGPROBS, "reasoning.encrypted_content"):
            raise Refused(400, f"include {name[:80]!r} is not supported; {LOGPROBS} is", code="unsupported_value", param="include")
