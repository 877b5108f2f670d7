"""POST /v1/chat/completions."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.output import CompletionOutput, RequestOutput
from ..answering import Ask, Reply
from ..conversation import prompt_ids
from ..errors import Refused
from ..protocol.chat import ChatForm
from ..response_format import answer_of_form
from ..sampling import sampling
from ..service import Service
from ..stream import Event
from ..turn import Wanted, choice_of, turn_of
from ..turns.reader import Arguments, Call, Piece, Thought, Words
from ..wording import Told, chat_logprobs, new_id, reasoning_tokens, usage


class ChatReply(Reply):
    """One conversation's next turn, `n` times."""

    def __init__(self, service: Service, form: ChatForm) -> None:
        _refuse_unsupported(form)
        wanted = _wanted(form)
        ids = prompt_ids(service, form.messages, wanted.offered, add_generation_prompt=form.add_generation_prompt,
                         variables=form.chat_template_kwargs)
        asked = form.max_completion_tokens if form.max_completion_tokens is not None else form.max_tokens
        self.top = (form.top_logprobs or 0) if form.logprobs else None
        turn = turn_of(service, wanted, ids)
        params = sampling(service, form, longest_prompt=len(ids), max_tokens=asked, default_tokens=None, logprobs=self.top)
        params = turn.sampling(params)
        self.readers = [turn.reader() if turn.reader else None for _ in range(params.n)]
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
            *firsts, last = [_delta(piece) for piece in self._read(choice, choice.delta)] or [{}]
            made = self._choice(choice, told)
            bare = {**made, "logprobs": None, "token_ids": [], "finish_reason": None, "stop_reason": None}
            events += [self._chunk({**{name: bare[name] for name in made}, "delta": delta}, output) for delta in firsts]
            events.append(self._chunk({**made, "delta": last}, output))
        return events

    def _read(self, choice: CompletionOutput, text: str) -> list[Piece]:
        reader = self.readers[choice.index]
        if reader is None:
            return [Words(text)] if text else []
        return reader.push(text) + (reader.finish() if choice.finish_reason else [])

    def ended(self) -> Sequence[Event]:
        if not self.form.usage_wanted or self.latest is None:
            return ()
        return (Event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(self.latest)}),)

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = []
        for choice in outputs[0].outputs:
            pieces = self._read(choice, choice.text)
            choices.append({**self._choice(choice, 0), "message": _message(pieces)})
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self._usage(outputs[0])}

    def _usage(self, output: RequestOutput) -> dict[str, Any]:
        thought = [reasoning_tokens(self.tokenizer, self.readers[choice.index], choice.token_ids) for choice in output.outputs]
        return usage([output], sum(thought))

    def _choice(self, choice: CompletionOutput, told: int) -> dict[str, Any]:
        entries, reader = (choice.logprobs or ())[told:], self.readers[choice.index]
        called = choice.finish_reason == "stop" and reader is not None and reader.called
        made: dict[str, Any] = {
            "index": choice.index, "logprobs": None if self.top is None else chat_logprobs(self.tokenizer, entries, self.top),
            "finish_reason": "tool_calls" if called else choice.finish_reason, "stop_reason": choice.stop_reason,
        }
        if self.form.return_token_ids:
            made["token_ids"] = choice.token_ids[told:]
        return made

    def _chunk(self, choice: dict[str, Any], output: RequestOutput) -> Event:
        made = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        if self.form.usage_in_each:
            made["usage"] = self._usage(output)
        elif self.form.usage_wanted:
            made["usage"] = None
        return Event(made)


def _delta(piece: Piece) -> dict[str, Any]:
    """One piece as a chunk tells it. Thoughts have vLLM's name."""
    match piece:
        case Words(text):
            return {"content": text}
        case Thought(text):
            return {"reasoning_content": text}
        case Call(number, name):
            call = {"index": number, "id": new_id("call"), "type": "function", "function": {"name": name, "arguments": ""}}
            return {"tool_calls": [call]}
        case Arguments(number, text):
            return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}


def _message(pieces: Sequence[Piece]) -> dict[str, Any]:
    """A whole turn. Its content is null where it does nothing but call."""
    words = "".join(piece.text for piece in pieces if isinstance(piece, Words))
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    calls = [
        {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": "".join(
            piece.text for piece in pieces if isinstance(piece, Arguments) and piece.number == call.number)}}
        for call in pieces if isinstance(call, Call)
    ]
    return {
        "role": "assistant", "content": words if words or not calls else None, "refusal": None,
        **({"reasoning_content": thoughts} if thoughts else {}), **({"tool_calls": calls} if calls else {}),
    }


def _wanted(form: ChatForm) -> Wanted:
    choice = choice_of(form.tool_choice, _named)
    return Wanted(form.tools or (), **choice, parallel=form.parallel_tool_calls is not False, answer=answer_of_form(form))


def _named(given: Mapping[str, Any]) -> object:
    function = given.get("function")
    return function.get("name") if isinstance(function, Mapping) else None


def _refuse_unsupported(form: ChatForm) -> None:
    """What would change the answer and is not there is refused; nothing is left out silently."""
    if form.top_logprobs and not form.logprobs:
        raise Refused(400, "top_logprobs needs logprobs to be true", code="invalid_value", param="top_logprobs")
    if form.modalities and form.modalities != ["text"]:
        raise Refused(400, "modalities must be [\"text\"]: this model writes text only", code="unsupported_value", param="modalities")
