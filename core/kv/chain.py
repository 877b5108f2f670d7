"""One sequence's names in the prefix indexes. They outlive a preemption."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .prefix import PrefixIndex
from .salt import Salt


class Chain:
    """keys[i]: the keys of the sequence's full blocks in index i; `plain`: those of index 0 without the salt."""

    __slots__ = ("_indexes", "_plain_origin", "keys", "origins", "plain", "salt", "salted")

    def __init__(self, indexes: Sequence[PrefixIndex], salt: Salt) -> None:
        self._indexes = indexes
        self.salt = salt.encode()
        self.origins = [index.origin(salt) for index in indexes]
        self.keys: list[list[bytes]] = [[] for _ in indexes]
        self._plain_origin = indexes[0].origin(Salt()) if indexes else b""
        self.salted = bool(indexes) and self._plain_origin != self.origins[0]
        self.plain: list[bytes] = [] if self.salted or not indexes else self.keys[0]

    def extend(self, tokens: np.ndarray) -> None:
        """Name every full block of tokens [known] int32."""
        data = tokens.data.cast("B")
        for index, origin, keys in zip(self._indexes, self.origins, self.keys, strict=True):
            index.extend(keys, origin, data)
        if self.keys and self.plain is not self.keys[0]:
            self._indexes[0].extend(self.plain, self._plain_origin, data)
