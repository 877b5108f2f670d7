"""embedding and take_rows: rows picked by index, to the bit."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import EXACT
from .weights import Tensor, Weight


@spec
class Embedding(Spec):
    """`ops.embedding(spec, tokens [tokens] int32, weight [vocab, size]) -> [tokens, size]`."""

    op = "embedding"
    tolerance = EXACT

    vocab: Dim
    size: int
    dtype: str

    def infer(self, tokens: Abstract, weight: Any) -> Abstract:
        expect(self.op, "tokens", tokens, (), "int32")
        return Abstract((*tokens.shape, self.size), self.dtype)

    def reference(self, tokens: Any, weight: Sequence[Any]) -> Any:
        return wide(weight[0][np.asarray(tokens)])

    def weight(self, name: str) -> Weight:
        return Weight((Tensor(f"{name}.weight", (self.vocab.size, self.size), (None, "lookup")),))


@spec
class TakeRows(Spec):
    """`ops.take_rows(spec, x [tokens, size], rows [samples] int32) -> [samples, size]`."""

    op = "take_rows"
    tolerance = EXACT

    size: Dim
    dtype: str

    def infer(self, x: Abstract, rows: Abstract) -> Abstract:
        expect(self.op, "x", x, (self.size.size,), self.dtype)
        expect(self.op, "rows", rows, (), "int32")
        return Abstract((*rows.shape, self.size.size), self.dtype)

    def reference(self, x: Any, rows: Any) -> Any:
        return wide(x)[np.asarray(rows)]
