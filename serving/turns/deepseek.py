"""DeepSeek V3 and R1: calls between marks of their own, arguments in a fenced block (V3.1: bare, after the name)."""
from __future__ import annotations

from collections.abc import Sequence

from .format import MOST_CALLS, Format, Mark, Offer, quoted, rules
from .objects import ObjectText
from .reader import Reader

BAR, GAP = "\uff5c", "\u2581"
CALLS, END, CALL, NAME, CALL_END = (
    f"<{BAR}tool{GAP}{name}{BAR}>"
    for name in (f"calls{GAP}begin", f"calls{GAP}end", f"call{GAP}begin", "sep", f"call{GAP}end")
)
FENCE = "\n```json\n"


class DeepseekReader(Reader):
    def start(self) -> bool:
        text, mark = self.take_to(CALLS)
        self.say(text)
        return self.go(self.between) if mark else False

    def between(self) -> bool:
        _, mark = self.take_to(CALL, END)
        return self.go(self.kind if mark == CALL else self.start) if mark else False

    def kind(self) -> bool:
        """V3 writes "function" before the separator and the name behind it; V3.1 the name before it."""
        if NAME not in self.buffer:
            return False
        self._kind, self.buffer = self.buffer.split(NAME, 1)
        return self.go(self.name)

    def name(self) -> bool:
        brace = self.buffer.find("{")
        if brace < 0:
            return False
        head, self.buffer = self.buffer[:brace], self.buffer[brace:]
        behind = head.split("```")[0].strip()
        self._number = self.call(behind or self._kind.strip())
        self._text = ObjectText()
        return self.go(self.arguments)

    def arguments(self) -> bool:
        taken = self._text.feed(self.buffer)
        text, self.buffer = self.buffer[:taken], self.buffer[taken:]
        self.argue(self._number, text)
        return self.go(self.between) if self._text.closed else False


class Deepseek(Format):
    name, marks, special, opening = "deepseek", (CALLS,), True, CALLS

    def reader(self) -> DeepseekReader:
        return DeepseekReader()

    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        def call(offer: Offer, arguments: str) -> str:
            head = f"{mark(CALL)} \"function\" {mark(NAME)} {quoted(offer.name + FENCE)}"
            return f"{head} {arguments} {quoted(chr(10) + '```')} {mark(CALL_END)}"

        more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else ""
        return f"calls: {mark(CALLS)} call{more} {mark(END)}\n{rules(offers, call)}"
