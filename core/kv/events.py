"""What is told of the prefix cache as it changes, to whoever asked to be told."""
from __future__ import annotations

from typing import Protocol


class KVListener(Protocol):
    """Called on the engine's thread, between two steps: it must not wait. Keys are those of `PrefixIndex`."""

    def stored(self, key: bytes, parent: bytes | None, tokens: bytes, block_tokens: int) -> None:
        """A block can be found from now on. parent: None at the start of a prompt. tokens: little-endian int32."""

    def removed(self, key: bytes) -> None:
        """It no longer can. Blocks with a salt are private: only their removal is told, which says nothing of them."""

    def cleared(self) -> None:
        """None can."""
