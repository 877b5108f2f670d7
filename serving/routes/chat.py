"""POST /v1/chat/completions."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...core.output import CompletionOutput, RequestOutput
from ..answering import Ask, Reply
from ..conversation import prompt_ids
from ..errors import Refused
from ..protocol.chat import ChatForm
from ..sampling import sampling
from ..service import Service
from ..stream import Event
from ..wording import Told, chat_logprobs, new_id, usage


class ChatReply(Reply):
    """One conversation's next turn, `n` times."""

    def __init__(self, service: Service, form: ChatForm) -> None:
        _refuse_unsupported(form)
        tools = None if form.tool_choice == "none" else form.tools
        ids = prompt_ids(service, form.messages, tools, add_generation_prompt=form.add_generation_prompt,
                         variables=form.chat_template_kwargs)
        asked = form.max_completion_tokens if form.max_completion_tokens is not None else form.max_tokens
        self.top = (form.top_logprobs or 0) if form.logprobs else None
        params = sampling(service, form, longest_prompt=len(ids), max_tokens=asked, default_tokens=None, logprobs=self.top)
        self.ask = Ask((ids,), params, form.priority, form.cache_salt)
        self.streamed = bool(form.stream)
        self.form, self.tokenizer = form, service.tokenizer
        self.told = Told(params.n)
        self.latest: RequestOutput | None = None
        self.head = {
            "id": new_id("chatcmpl"), "created": int(time.time()), "model": service.names[0], "system_fingerprint": service.fingerprint,
        }

    def grew(self, place: int, output: RequestOutput) -> Sequence[Event]:
        events = [] if self.latest else [
            self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}, output)
            for index in range(self.ask.params.n)
        ]
        self.latest = output
        each_token = self.top is not None or bool(self.form.return_token_ids)
        for choice, told in self.told.news(output, each_token=each_token):
            made = self._choice(choice, told)
            made["delta"] = {"content": choice.delta} if choice.delta else {}
            events.append(self._chunk(made, output))
        return events

    def ended(self) -> Sequence[Event]:
        if not self.form.usage_wanted or self.latest is None:
            return ()
        return (Event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage([self.latest])}),)

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = []
        for choice in outputs[0].outputs:
            made = self._choice(choice, 0)
            made["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            choices.append(made)
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage(outputs)}

    def _choice(self, choice: CompletionOutput, told: int) -> dict[str, Any]:
        entries = (choice.logprobs or ())[told:]
        made: dict[str, Any] = {
            "index": choice.index, "logprobs": None if self.top is None else chat_logprobs(self.tokenizer, entries, self.top),
            "finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason,
        }
        if self.form.return_token_ids:
            made["token_ids"] = choice.token_ids[told:]
        return made

    def _chunk(self, choice: dict[str, Any], output: RequestOutput) -> Event:
        made = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        if self.form.usage_in_each:
            made["usage"] = usage([output])
        elif self.form.usage_wanted:
            made["usage"] = None
        return Event(made)


def _refuse_unsupported(form: ChatForm) -> None:
    """What would change the answer and is not there is refused; nothing is left out silently."""
    if form.top_logprobs and not form.logprobs:
        raise Refused(400, "top_logprobs needs logprobs to be true", code="invalid_value", param="top_logprobs")
    if form.tool_choice not in (None, "none", "auto"):
        raise Refused(400, "tool_choice must be none or auto: a call cannot be enforced yet", code="unsupported_value", param="tool_choice")
    if form.response_format and form.response_format.type != "text":
        raise Refused(400, f"response_format {form.response_format.type} is not supported yet; use text",
                      code="unsupported_value", param="response_format")
    if form.modalities and form.modalities != ["text"]:
        raise Refused(400, "modalities must be [\"text\"]: this model writes text only", code="unsupported_value", param="modalities")
