"""POST /v1/completions."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.output import CompletionOutput, RequestOutput
from ..answering import Ask, Reply
from ..errors import Refused
from ..protocol.completions import CompletionForm
from ..response_format import answer_of_form
from ..sampling import sampling
from ..service import Service
from ..stream import Event
from ..wording import Told, characters, completion_logprobs, joined_logprobs, new_id, prompt_logprobs, usage

DEFAULT_TOKENS = 16
"""OpenAI's."""


class CompletionReply(Reply):
    """Continuations of one prompt or several. The choices of prompt p are numbered from p * n on."""

    def __init__(self, service: Service, form: CompletionForm) -> None:
        _refuse_unsupported(form)
        tokenizer = service.tokenizer
        ids = [tokenizer.encode(one, form.add_special_tokens) if isinstance(one, str) else one for one in form.prompts]
        params = sampling(
            service, form, longest_prompt=max(map(len, ids)), max_tokens=form.max_tokens, default_tokens=DEFAULT_TOKENS,
            logprobs=form.logprobs,
        )
        params = replace(params, structured_outputs=answer_of_form(form), prompt_logprobs=form.logprobs if form.echo else None)
        self.ask = Ask(tuple(ids), params, form.priority, form.cache_salt)
        self.streamed = bool(form.stream)
        self.form, self.tokenizer, self.top = form, tokenizer, form.logprobs
        self.echoed = [one if isinstance(one, str) else tokenizer.decode(one, skip_special_tokens=False)
                       for one in form.prompts] if form.echo else [""] * len(ids)
        self.told = [Told(params.n) for _ in ids]
        self.latest: dict[int, RequestOutput] = {}
        self.offsets: dict[tuple[int, int], int] = {}
        self.head = {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": service.names[0],
            "system_fingerprint": service.fingerprint,
        }

    def grew(self, place: int, output: RequestOutput) -> Sequence[Event]:
        events = []
        if place not in self.latest and self.form.echo:
            events += [self._chunk({
                "index": place * self.ask.params.n + index, "text": self.echoed[place], "logprobs": self._of_prompt(place, output),
                "finish_reason": None,
            }) for index in range(self.ask.params.n)]
        self.latest[place] = output
        each_token = self.top is not None or bool(self.form.return_token_ids)
        for choice, told in self.told[place].news(output, each_token=each_token):
            events.append(self._chunk({**self._choice(place, choice, told), "text": choice.delta}))
        return events

    def ended(self) -> Sequence[Event]:
        if not self.form.usage_wanted:
            return ()
        return (Event({**self.head, "choices": [], "usage": usage(list(self.latest.values()))}),)

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = []
        for place, output in enumerate(outputs):
            of_prompt = self._of_prompt(place, output)
            for choice in output.outputs:
                made = self._choice(place, choice, 0)
                if of_prompt:
                    made["logprobs"] = joined_logprobs(of_prompt, made["logprobs"])
                choices.append({**made, "text": self.echoed[place] + choice.text})
        return {**self.head, "choices": choices, "usage": usage(outputs)}

    def _choice(self, place: int, choice: CompletionOutput, told: int) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": place * self.ask.params.n + choice.index, "logprobs": self._logprobs(place, choice, told),
            "finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason,
        }
        if self.form.return_token_ids:
            made["token_ids"] = choice.token_ids[told:]
            made["prompt_token_ids"] = self.ask.prompts[place] if told == 0 else None
        return made

    def _logprobs(self, place: int, choice: CompletionOutput, told: int) -> dict[str, Any] | None:
        if self.top is None:
            return None
        key, entries = (place, choice.index), (choice.logprobs or ())[told:]
        offset = self.offsets.get(key, len(self.echoed[place]))
        self.offsets[key] = offset + sum(characters(self.tokenizer, next(iter(entry))) for entry in entries)
        return completion_logprobs(self.tokenizer, entries, self.top, offset)

    def _of_prompt(self, place: int, output: RequestOutput) -> dict[str, Any] | None:
        """Of an echo."""
        if self.top is None or output.prompt_logprobs is None:
            return None
        return prompt_logprobs(self.tokenizer, self.ask.prompts[place], output.prompt_logprobs, self.top, self.echoed[place])

    def _chunk(self, choice: dict[str, Any]) -> Event:
        made = {**self.head, "choices": [choice]}
        if self.form.usage_in_each:
            made["usage"] = usage(list(self.latest.values()))
        elif self.form.usage_wanted:
            made["usage"] = None
        return Event(made)


def _refuse_unsupported(form: CompletionForm) -> None:
    """What would change the answer and is not there is refused; nothing is left out silently."""
    if form.suffix:
        raise Refused(400, "suffix is not supported: models here continue a text, they do not fill a gap",
                      code="unsupported_value", param="suffix")
    if form.best_of not in (None, form.n or 1):
        raise Refused(400, "best_of is not supported beyond n; ask for n answers and choose among them",
                      code="unsupported_value", param="best_of")
