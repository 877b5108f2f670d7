"""JSON objects read as they arrive, character by character: each value's text is told before its end."""
from __future__ import annotations

import json
from collections.abc import Iterator

from .reader import Reader

NAMES = ("name",)
ARGUMENTS = ("arguments", "parameters")


class ObjectText:
    """The text of one JSON object: `feed` says how many characters belong to it, and `closed` whether that was all."""

    def __init__(self) -> None:
        self.depth, self.in_string, self.escaped, self.closed = 0, False, False, False

    def feed(self, text: str) -> int:
        for place, character in enumerate(text):
            self._step(character)
            if self.closed:
                return place + 1
        return len(text)

    def _step(self, character: str) -> None:
        if self.in_string:
            self.in_string = self.escaped or character != '"'
            self.escaped = not self.escaped and character == "\\"
        elif character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
            self.closed = self.depth <= 0


class Members(ObjectText):
    """An object's own members, as their text arrives."""

    def __init__(self) -> None:
        super().__init__()
        self._key, self._spelled = "", ""
        self.taken = 0
        """Characters of the last text that belong to the object."""

    def members(self, text: str) -> Iterator[tuple[str, str, bool]]:
        """(key, more of its value's text, whether the value is whole) of text that follows what was given before."""
        value = ""
        for self.taken, character in enumerate(text, 1):
            depth, own = self.depth, self.depth == 1 and not self.in_string
            self._step(character)
            if own and (character == "," or self.closed):
                if self._key:
                    yield self._key, value, True
                self._key, self._spelled, value = "", "", ""
            elif own and character == ":" and not self._key:
                self._key = text_of(self._spelled)
            elif depth and not (own and character.isspace()):
                if self._key:
                    value += character
                else:
                    self._spelled += character
            if self.closed:
                return
        if value:
            yield self._key, value, False


def text_of(spelled: str) -> str:
    """A JSON string's text; what is none is taken as it is."""
    try:
        return str(json.loads(spelled))
    except ValueError:
        return spelled


class CallObjects(Reader):
    """A reader with states for a call that is a JSON object with its name and its arguments in either order."""

    def open_object(self) -> None:
        self._members, self._raw, self._name, self._arguments, self._number = Members(), "", "", "", -1
        self._as_text = False

    def object(self) -> bool:
        """Takes what there is of the object. True: it is closed, and `end_object` is due."""
        for key, text, whole in self._members.members(self.buffer):
            if key in NAMES:
                self._name += text
                if whole:
                    self._begin(text_of(self._name))
            elif key in ARGUMENTS:
                self._argue(text, whole)
        taken = self._members.taken
        self._raw, self.buffer, self._members.taken = self._raw + self.buffer[:taken], self.buffer[taken:], 0
        return self._members.closed

    def end_object(self) -> None:
        """Behind a closed object, or one that was cut off: without a name it was no call."""
        if self._number < 0:
            self.say(self._raw)
        elif self._members.closed and not self._arguments:
            self.argue(self._number, "{}")

    def _begin(self, name: str) -> None:
        self._number = self.call(name)
        self.argue(self._number, "" if self._as_text else self._arguments)

    def _argue(self, text: str, whole: bool) -> None:
        """Some models write the arguments' JSON as a string; it is told once it is whole."""
        self._as_text = (self._arguments or text).startswith('"')
        self._arguments += text
        if self._as_text and whole:
            self._arguments, self._as_text = text_of(self._arguments), False
            text = self._arguments
        if self._number >= 0 and not self._as_text:
            self.argue(self._number, text)
