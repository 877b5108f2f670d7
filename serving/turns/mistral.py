"""Mistral: [TOOL_CALLS], then a JSON list of calls, or in newer models each call as its name and the object of its arguments."""
from __future__ import annotations

from collections.abc import Sequence

from .format import MOST_CALLS, Format, Mark, Offer, named, rules
from .objects import CallObjects, ObjectText

BEGIN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralReader(CallObjects):
    def start(self) -> bool:
        text, mark = self.take_to(BEGIN)
        self.say(text)
        return self.go(self.begin) if mark else False

    def begin(self) -> bool:
        first = self.skip_blanks()
        if first == "[":
            self.buffer = self.buffer[1:]
            return self.go(self.item)
        return self.go(self.name) if first else False

    def item(self) -> bool:
        """Of a list."""
        first = self.skip_blanks()
        if first == "{":
            self.open_object()
            return self.go(self.inside)
        if first:
            self.buffer = self.buffer[1:]
        return self.go(self.start if first == "]" else self.item) if first else False

    def inside(self) -> bool:
        closed = self.object()
        if closed or self.ended:
            self.end_object()
            return self.go(self.item)
        return False

    def name(self) -> bool:
        brace = self.buffer.find("{")
        if brace < 0:
            return False
        head, self.buffer = self.buffer[:brace], self.buffer[brace:]
        self._number = self.call(head.split(ARGUMENTS)[0].split(ID)[0].strip())
        self._text = ObjectText()
        return self.go(self.arguments)

    def arguments(self) -> bool:
        taken = self._text.feed(self.buffer)
        text, self.buffer = self.buffer[:taken], self.buffer[taken:]
        self.argue(self._number, text)
        return self.go(self.start) if self._text.closed else False


class Mistral(Format):
    name, marks, special, opening = "mistral", (BEGIN,), True, BEGIN

    def reader(self) -> MistralReader:
        return MistralReader()

    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        def call(offer: Offer, arguments: str) -> str:
            return f'{named(offer.name)} {arguments} "}}"'

        more = f' (", " call){{0,{MOST_CALLS - 1}}}' if several else ""
        return f'calls: {mark(BEGIN)} "[" call{more} "]"\n{rules(offers, call)}'
