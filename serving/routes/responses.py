"""POST /v1/responses: text in, text out; as a whole, or as the events that OpenAI's clients follow."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.output import CompletionOutput, RequestOutput
from ..answering import Ask, Reply
from ..conversation import prompt_ids
from ..errors import Refused
from ..protocol.chat import Message, Part
from ..protocol.responses import Item, ResponsesForm
from ..sampling import sampling
from ..service import Service
from ..stream import Event
from ..wording import Told, chat_logprobs, new_id

PARTS = ("input_text", "output_text", "text", "refusal")
LOGPROBS = "message.output_text.logprobs"
"""What `include` may ask for."""


class ResponsesReply(Reply):
    """One turn."""

    done = ""

    def __init__(self, service: Service, form: ResponsesForm) -> None:
        _refuse_unsupported(form)
        ids = prompt_ids(service, _messages(form), None, add_generation_prompt=True, variables=form.chat_template_kwargs)
        self.top = (form.top_logprobs or 0) if form.top_logprobs or LOGPROBS in (form.include or ()) else None
        params = sampling(service, form, longest_prompt=len(ids), max_tokens=form.max_output_tokens, default_tokens=None, logprobs=self.top)
        self.ask = Ask((ids,), params, form.priority, form.cache_salt)
        self.streamed = bool(form.stream)
        self.form, self.tokenizer = form, service.tokenizer
        self.told = Told(1)
        self.message_id, self.number = new_id("msg"), 0
        self.head: dict[str, Any] = {
            "id": new_id("resp"), "object": "response", "created_at": int(time.time()), "model": service.names[0], "error": None,
            "instructions": form.instructions, "max_output_tokens": form.max_output_tokens, "metadata": form.metadata or {},
            "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": False,
            "temperature": params.temperature, "top_p": params.top_p, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
            "tools": [], "truncation": form.truncation or "disabled", "user": form.user, "background": False,
        }

    def grew(self, place: int, output: RequestOutput) -> Sequence[Event]:
        events = [] if self.number else self._opening()
        for choice, told in self.told.news(output, each_token=self.top is not None):
            if choice.delta:
                entries = self._logprobs(choice, told)
                events.append(self._event("response.output_text.delta", **self._place, delta=choice.delta, logprobs=entries))
        if output.finished:
            events += self._closing(output)
        return events

    def whole(self, outputs: Sequence[RequestOutput]) -> Mapping[str, Any]:
        [output] = outputs
        [choice] = output.outputs
        cut = choice.finish_reason == "length"
        return {
            **self.head, "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(choice)], "usage": _usage(output, choice),
        }

    def _opening(self) -> list[Event]:
        begun = {**self.head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        item = {"id": self.message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place, part=_part("", [])),
        ]

    def _closing(self, output: RequestOutput) -> list[Event]:
        [choice] = output.outputs
        whole, entries = self.whole([output]), self._logprobs(choice, 0)
        return [
            self._event("response.output_text.done", **self._place, text=choice.text, logprobs=entries),
            self._event("response.content_part.done", **self._place, part=_part(choice.text, entries)),
            self._event("response.output_item.done", output_index=0, item=self._message(choice)),
            self._event(f"response.{whole['status']}", response=whole),
        ]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        self.number += 1
        return Event({"type": kind, "sequence_number": self.number - 1, **fields}, kind)

    def _message(self, choice: CompletionOutput) -> dict[str, Any]:
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        content = [_part(choice.text, self._logprobs(choice, 0))]
        return {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _logprobs(self, choice: CompletionOutput, told: int) -> list[dict[str, Any]]:
        if self.top is None:
            return []
        found: list[dict[str, Any]] = chat_logprobs(self.tokenizer, (choice.logprobs or ())[told:], self.top)["content"]
        return found


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
    prompt, drawn = len(output.prompt_token_ids), len(choice.token_ids)
    cached = output.metrics.kv.hit_tokens if output.metrics.kv else 0
    return {
        "input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached}, "output_tokens": drawn,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + drawn,
    }


def _messages(form: ResponsesForm) -> list[Message]:
    opening = [Message(role="system", content=form.instructions)] if form.instructions else []
    if isinstance(form.input, str):
        return [*opening, Message(role="user", content=form.input)]
    return [*opening, *(_message(place, item) for place, item in enumerate(form.input) if item.type != "reasoning")]


def _message(place: int, item: Item) -> Message:
    if item.type != "message" or item.role is None:
        raise Refused(400, f"input[{place}] is of type {item.type[:40]!r}; messages with a role are taken here",
                      code="unsupported_value", param=f"input[{place}]")
    if item.content is None or isinstance(item.content, str):
        return Message(role=item.role, content=item.content)
    return Message(role=item.role, content=[_text_part(place, part) for part in item.content])


def _text_part(place: int, part: Mapping[str, Any]) -> Part:
    text = part.get("text", part.get("refusal"))
    if part.get("type") not in PARTS or not isinstance(text, str):
        raise Refused(400, f"input[{place}].content must have parts of type input_text or output_text, with their text",
                      code="unsupported_content", param=f"input[{place}].content")
    return Part(type="text", text=text)


def _refuse_unsupported(form: ResponsesForm) -> None:
    """What would change the answer and is not there is refused; nothing is left out silently."""
    refusals = (
        ("previous_response_id", form.previous_response_id, "answers are not stored; send the conversation as input"),
        ("conversation", form.conversation, "conversations are not stored; send them as input"),
        ("store", form.store, "answers are not stored; set store to false"),
        ("background", form.background, "answers are given while the client waits"),
        ("tools", form.tools, "tools are not supported here yet; use /v1/chat/completions"),
    )
    for name, value, why in refusals:
        if value:
            raise Refused(400, f"{name} is not supported: {why}", code="unsupported_value", param=name)
    if form.text and form.text.format and form.text.format.get("type") != "text":
        raise Refused(400, "text.format is not supported yet beyond type text", code="unsupported_value", param="text.format")
    for name in form.include or ():
        if name not in (LOGPROBS, "reasoning.encrypted_content"):
            raise Refused(400, f"include {name[:80]!r} is not supported; {LOGPROBS} is", code="unsupported_value", param="include")
