"""head_linear: a product of its own for each head, which takes latent attention's queries to its keys and values back (DeepSeek-V2)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import Tolerance, elementwise
from .weights import Tensor, Weight


@spec
class HeadLinear(Spec):
    """`ops.head_linear(spec, x [tokens, heads, input], weight) -> [tokens, heads, output]`: y[:, h] = x[:, h] W[h]^T.

    The weight is [heads, output, input]. stored: how the checkpoint keeps what kernels get as floats.
    """

    op = "head_linear"
    heads: Dim
    input: int
    output: int
    dtype: str
    stored: str | None = None

    @property
    def tolerance(self) -> Tolerance:  # type: ignore[override]
        return elementwise(depth=self.input)

    def infer(self, x: Abstract, weight: Any) -> Abstract:
        expect(self.op, "x", x, (self.heads.size, self.input), self.dtype)
        return Abstract((*x.shape[:-1], self.output), self.dtype)

    def reference(self, x: Any, weight: Sequence[Any]) -> Any:
        return np.einsum("thi,hoi->tho", wide(x), wide(weight[0]))

    def magnitude(self, x: Any, weight: Sequence[Any]) -> Any:
        return self.reference(np.abs(wide(x)), [np.abs(wide(weight[0]))])

    def weight(self, name: str) -> Weight:
        return Weight((Tensor(name, (self.heads.size, self.output, self.input), (self.heads.axis, None, None)),))
