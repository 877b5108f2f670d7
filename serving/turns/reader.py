"""A turn read as it grows: text goes in as it is drawn, and comes out as thoughts, words and tool calls."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Thought(NamedTuple):
    text: str


class Words(NamedTuple):
    text: str


class Call(NamedTuple):
    """A call begins. `number` counts the turn's calls from 0."""

    number: int
    name: str


class Arguments(NamedTuple):
    """More of a call's arguments: JSON text."""

    number: int
    text: str


Piece = Thought | Words | Call | Arguments


class Reader:
    """A machine over the text that was not understood yet; this one takes all of it for words.

    `state` takes what it can from `buffer`, tells it by `pieces`, and says whether it got further; `ended`: no more text comes.
    A call that is none after all is told as words: nothing that the model wrote is lost, but for blanks around calls.
    """

    def __init__(self) -> None:
        self.buffer, self.ended = "", False
        self.pieces: list[Piece] = []
        self.calls = 0
        self.state: Callable[[], bool] = self.start
        self._blank, self._after_call = "", False

    def start(self) -> bool:
        """The first state."""
        self.say(self.take())
        return False

    @property
    def called(self) -> bool:
        """Whether the turn has called anything yet."""
        return self.calls > 0

    def push(self, text: str) -> list[Piece]:
        self.buffer += text
        while self.state():
            pass
        made, self.pieces = self.pieces, []
        return made

    def finish(self) -> list[Piece]:
        """After the last text. A call that was cut off keeps what was told of it."""
        self.ended = True
        made = self.push("")
        self.say(self.take())
        if self._blank:
            self.pieces.append(Words(self._blank))
        return [*made, *self.pieces]

    # For states.

    def go(self, state: Callable[[], bool]) -> bool:
        self.state = state
        return True

    def take(self) -> str:
        taken, self.buffer = self.buffer, ""
        return taken

    def take_to(self, *marks: str) -> tuple[str, str]:
        """(what comes before the first of the marks, that mark), both taken. Without one: (what can be part of none, "")."""
        found = min(((at, mark) for mark in marks if (at := self.buffer.find(mark)) >= 0), default=None)
        if found is None:
            kept = 0 if self.ended else max(_overlap(self.buffer, mark) for mark in marks)
            taken, self.buffer = self.buffer[: len(self.buffer) - kept], self.buffer[len(self.buffer) - kept :]
            return taken, ""
        at, mark = found
        taken, self.buffer = self.buffer[:at], self.buffer[at + len(mark) :]
        return taken, mark

    def skip_blanks(self) -> str:
        """The first character behind them; empty: none is there yet."""
        self.buffer = self.buffer.lstrip()
        return self.buffer[:1]

    def say(self, text: str) -> None:
        """Words. Blanks wait for more words, and are dropped before a call."""
        text = self._blank + text
        kept = (text := text.lstrip() if self._after_call else text).rstrip()
        self._blank = text[len(kept) :]
        if kept:
            self.pieces.append(Words(kept))
            self._after_call = False

    def call(self, name: str) -> int:
        """A call begins; its number."""
        self._blank, self._after_call = "", True
        self.pieces.append(Call(self.calls, name))
        self.calls += 1
        return self.calls - 1

    def argue(self, number: int, text: str) -> None:
        if text:
            self.pieces.append(Arguments(number, text))


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of the text that begin the mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


class Thinking(Reader):
    """Before another reader: what stands between two marks at the start of a turn is a thought.

    inside: the prompt itself ended with the first mark.
    """

    def __init__(self, rest: Reader, marks: Sequence[tuple[str, str]], inside: str = "") -> None:
        super().__init__()
        self.rest, self.marks, self.end = rest, dict(marks), inside
        self.thoughts = ""
        if inside:
            self.state = self.think

    def start(self) -> bool:
        first = self.buffer.lstrip()
        for begin, end in self.marks.items():
            if first.startswith(begin):
                self.buffer, self.end = first[len(begin) :], end
                return self.go(self.think)
        if not self.ended and any(begin.startswith(first) for begin in self.marks):
            return False
        return self.go(self.read)

    def think(self) -> bool:
        text, mark = self.take_to(self.end)
        if text:
            self.pieces.append(Thought(text))
            self.thoughts += text
        return self.go(self.read) if mark else False

    @property
    def called(self) -> bool:
        return self.rest.called

    def read(self) -> bool:
        self.pieces += self.rest.push(self.take())
        return False

    def finish(self) -> list[Piece]:
        self.ended = True
        return [*self.push(""), *self.rest.finish()]
