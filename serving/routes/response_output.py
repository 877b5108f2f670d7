"""The output items of /v1/responses: thoughts, words and calls as they grow, and the events that tell of them."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from ..stream import Event
from ..turns.reader import Arguments, Call, Piece, Thought, Words
from ..wording import new_id

Logprobs = list[dict[str, Any]]


class Tell(Protocol):
    """Makes the next event of a response."""

    def __call__(self, kind: str, **fields: Any) -> Event: ...


class Item(ABC):
    """One item. `place` is its index in the output."""

    prefix: str

    def __init__(self, tell: Tell, place: int) -> None:
        self.tell, self.place, self.id, self.text = tell, place, new_id(self.prefix), ""
        self.status = "in_progress"

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """The item as it is now."""

    def begin(self) -> list[Event]:
        return [self.tell("response.output_item.added", output_index=self.place, item=self.told())]

    @abstractmethod
    def grow(self, text: str, logprobs: Logprobs) -> list[Event]: ...

    def end(self, status: str) -> list[Event]:
        self.status = status
        return [self.tell("response.output_item.done", output_index=self.place, item=self.told())]


class CallItem(Item):
    """A call of a function."""

    prefix = "fc"

    def __init__(self, tell: Tell, place: int, name: str) -> None:
        super().__init__(tell, place)
        self.name, self.call_id = name, new_id("call")

    def told(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function_call", "status": self.status, "call_id": self.call_id, "name": self.name,
                "arguments": self.text}

    def grow(self, text: str, logprobs: Logprobs) -> list[Event]:
        self.text += text
        return [self.tell("response.function_call_arguments.delta", item_id=self.id, output_index=self.place, delta=text)]

    def end(self, status: str) -> list[Event]:
        done = self.tell("response.function_call_arguments.done", item_id=self.id, output_index=self.place, name=self.name,
                         arguments=self.text)
        return [done, *super().end(status)]


class PartItem(Item):
    """An item whose text is its one part."""

    event: str

    @abstractmethod
    def part(self) -> dict[str, Any]: ...

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.place, "content_index": 0}

    def begin(self) -> list[Event]:
        return [*super().begin(), self.tell("response.content_part.added", **self._at, part=self.part())]

    def end(self, status: str) -> list[Event]:
        """`text` and, of words, `logprobs` stand in the part, too."""
        done = {name: value for name, value in self.part().items() if name in ("text", "logprobs")}
        return [
            self.tell(f"response.{self.event}.done", **self._at, **done),
            self.tell("response.content_part.done", **self._at, part=self.part()), *super().end(status),
        ]


class MessageItem(PartItem):
    """Words to the user."""

    prefix, event = "msg", "output_text"

    def __init__(self, tell: Tell, place: int) -> None:
        super().__init__(tell, place)
        self.logprobs: Logprobs = []

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    def told(self) -> dict[str, Any]:
        content = [] if self.status == "in_progress" else [self.part()]
        return {"id": self.id, "type": "message", "role": "assistant", "status": self.status, "content": content}

    def grow(self, text: str, logprobs: Logprobs) -> list[Event]:
        self.text += text
        self.logprobs += logprobs
        return [self.tell("response.output_text.delta", **self._at, delta=text, logprobs=logprobs)]


class ReasoningItem(PartItem):
    """What the model thinks before it answers."""

    prefix, event = "rs", "reasoning_text"

    def part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def told(self) -> dict[str, Any]:
        content = [] if self.status == "in_progress" else [self.part()]
        return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": self.status}

    def grow(self, text: str, logprobs: Logprobs) -> list[Event]:
        self.text += text
        return [self.tell("response.reasoning_text.delta", **self._at, delta=text)]


class Output:
    """All items of a response. One is open at a time."""

    def __init__(self, tell: Tell) -> None:
        self.items: list[Item] = []
        self._tell, self._waiting = tell, Logprobs()

    def take(self, pieces: Sequence[Piece], logprobs: Logprobs) -> list[Event]:
        """logprobs: of the tokens that were drawn since. They are told with the words that they became; those of calls are not told."""
        self._waiting += logprobs
        events: list[Event] = []
        for piece in pieces:
            match piece:
                case Call(_, name):
                    self._waiting.clear()
                    events += self._next(CallItem(self._tell, len(self.items), name))
                case Arguments(_, text):
                    events += self.items[-1].grow(text, [])
                case Thought(text):
                    events += self._grow(ReasoningItem, text, [])
                case Words(text):
                    entries, self._waiting = self._waiting, []
                    events += self._grow(MessageItem, text, entries)
        return events

    def end(self, cut: bool) -> list[Event]:
        """cut: by a limit. A response that says nothing has an empty message."""
        events = [] if self.items else self._next(MessageItem(self._tell, 0))
        last = self.items[-1]
        if isinstance(last, MessageItem):
            last.logprobs += self._waiting
        return events + last.end("incomplete" if cut else "completed")

    def told(self) -> list[dict[str, Any]]:
        return [item.told() for item in self.items]

    def _grow(self, kind: type[MessageItem] | type[ReasoningItem], text: str, logprobs: Logprobs) -> list[Event]:
        events = [] if self.items and isinstance(self.items[-1], kind) else self._next(kind(self._tell, len(self.items)))
        return events + self.items[-1].grow(text, logprobs)

    def _next(self, item: Item) -> list[Event]:
        events = self.items[-1].end("completed") if self.items else []
        self.items.append(item)
        return events + item.begin()
