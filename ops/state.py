"""State groups: layers whose memory shares one lifetime, one block size and one table of blocks."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import SpecError


@dataclass(frozen=True)
class StateArray:
    """One array of a paged group: for each layer and token, `[heads, dim]` values of `dtype`."""

    heads: int
    dim: int
    dtype: str
    axis: str | None = "kv_heads"


@dataclass(frozen=True)
class StateGroup:
    """Layers that share a lifetime.

    paged: one row of `arrays` per token, in blocks of `block_tokens` tokens; `window` tokens are ever read back (None: all).
    recurrent: one row of `arrays` per running request, in its slot.
    Block 0 and slot 0 are null: padding reads and writes there.
    """

    name: str
    layers: tuple[int, ...]
    arrays: Mapping[str, StateArray]
    kind: Literal["paged", "recurrent"] = "paged"
    window: int | None = None
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if not self.layers:
            raise SpecError(f"state group {self.name!r} has no layers; leave it out instead")
        if self.window is not None and self.window < 1:
            raise SpecError(f"state group {self.name!r} has window {self.window}; use None for full attention")
        if self.block_tokens < 1:
            raise SpecError(f"state group {self.name!r} has blocks of {self.block_tokens} tokens; at least 1 is needed")

    def block_bytes(self, itemsize: Mapping[str, int]) -> int:
        """Bytes of one block over all of the group's layers; `itemsize` maps a dtype to its bytes."""
        token = sum(a.heads * a.dim * itemsize[a.dtype] for a in self.arrays.values())
        return token * self.block_tokens * len(self.layers)
