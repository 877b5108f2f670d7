"""Llama 3: a turn that is one JSON object, or several with semicolons between them, after <|python_tag|> or without."""
from __future__ import annotations

from collections.abc import Sequence

from .format import MOST_CALLS, Format, Mark, Offer, named, rules
from .objects import CallObjects

TAG = "<|python_tag|>"


class Llama3JsonReader(CallObjects):
    def start(self) -> bool:
        """Only a turn that begins with an object calls anything."""
        first = self.buffer.lstrip()
        if first.startswith(TAG):
            self.buffer = first = first[len(TAG) :].lstrip()
        if first.startswith("{"):
            self.buffer = first
            self.open_object()
            return self.go(self.inside)
        return self.go(self.words) if first and (self.ended or not TAG.startswith(first)) else False

    def inside(self) -> bool:
        closed = self.object()
        if closed or self.ended:
            self.end_object()
            return self.go(self.behind if self.calls else self.words)
        return False

    def behind(self) -> bool:
        first = self.skip_blanks()
        if first == ";":
            self.buffer = self.buffer[1:]
            return self.go(self.behind)
        if first == "{":
            self.open_object()
            return self.go(self.inside)
        return self.go(self.words) if first else False

    words = CallObjects.start


class Llama3Json(Format):
    name, marks, special = "llama3_json", (TAG, '"parameters": dictionary of argument name'), True
    bracket = "{"

    def reader(self) -> Llama3JsonReader:
        return Llama3JsonReader()

    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        def call(offer: Offer, arguments: str) -> str:
            return f'{named(offer.name, "parameters")} {arguments} "}}"'

        more = f' ("; " call){{0,{MOST_CALLS - 1}}}' if several else ""
        return f"calls: call{more}\n{rules(offers, call)}"
