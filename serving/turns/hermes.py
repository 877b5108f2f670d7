"""Hermes, Qwen and the embedded model: each call is a JSON object between <tool_call> and </tool_call>."""
from __future__ import annotations

from collections.abc import Sequence

from .format import MOST_CALLS, Format, Mark, Offer, named, rules
from .objects import CallObjects

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesReader(CallObjects):
    def start(self) -> bool:
        text, mark = self.take_to(BEGIN)
        self.say(text)
        if not mark:
            return False
        self.open_object()
        return self.go(self.begin)

    def begin(self) -> bool:
        first = self.skip_blanks()
        if first not in ("", "{"):
            self.say(BEGIN)
            return self.go(self.start)
        return self.go(self.inside) if first else False

    def inside(self) -> bool:
        closed = self.object()
        if closed or self.ended:
            self.end_object()
            return self.go(self.behind)
        return False

    def behind(self) -> bool:
        _, mark = self.take_to(END)
        return self.go(self.start) if mark else False


class Hermes(Format):
    name, marks, opening = "hermes", (BEGIN,), BEGIN

    def reader(self) -> HermesReader:
        return HermesReader()

    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        def call(offer: Offer, arguments: str) -> str:
            return f'{mark(BEGIN)} "\\n" {named(offer.name)} {arguments} "}}\\n" {mark(END)}'

        more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else ""
        return f"calls: call{more}\n{rules(offers, call)}"
