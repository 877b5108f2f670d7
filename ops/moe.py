"""router and moe: which experts a token goes to, and their gated MLPs (Shazeer et al. 2017; Jiang et al. 2024)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import SpecError
from .elementwise import FORMULAS
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import NAIVE_RELATIVE, elementwise
from .weights import Tensor, Weight


@spec
class Router(Spec):
    """`ops.router(spec, logits [tokens, experts] float32) -> (experts [tokens, top_k] int32, weights [tokens, top_k] float32)`.

    Softmax (or sigmoid) over all experts, the top_k best, ties to the lowest id; `renormalize`: kept weights sum to 1.
    """

    op = "router"
    tolerance = elementwise(depth=64)

    experts: Dim
    top_k: int
    renormalize: bool = True
    sigmoid: bool = False

    def validate(self) -> None:
        if not 0 < self.top_k <= self.experts.size:
            raise SpecError(f"router: top_k {self.top_k} of {self.experts.size} experts")

    def infer(self, logits: Abstract) -> tuple[Abstract, Abstract]:
        expect(self.op, "logits", logits, (self.experts.size,), "float32")
        shape = (*logits.shape[:-1], self.top_k)
        return Abstract(shape, "int32"), Abstract(shape, "float32")

    def reference(self, logits: Any) -> Any:
        logits = wide(logits)
        if self.sigmoid:
            gates = 1 / (1 + np.exp(-logits))
        else:
            gates = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
            gates /= gates.sum(axis=-1, keepdims=True)
        experts = np.argsort(-logits, axis=-1, kind="stable")[..., : self.top_k]
        weights = np.take_along_axis(gates, experts, axis=-1)
        return experts.astype(np.int32), weights / weights.sum(axis=-1, keepdims=True) if self.renormalize else weights


@spec
class Moe(Spec):
    """`ops.moe(spec, x [tokens, embed], experts [tokens, top_k], weights [tokens, top_k], weight, batch) -> [tokens, embed]`.

    The sum over a token's experts of weight * down(activation(gate(x)) * up(x)). The weight's tensors are
    gate, up [experts, mlp, embed] and down [experts, embed, mlp].
    """

    op = "moe"
    tolerance = NAIVE_RELATIVE

    experts: Dim
    embed: int
    mlp: Dim
    top_k: int
    activation: str
    dtype: str

    def infer(self, x: Abstract, experts: Abstract, weights: Abstract, weight: Any, batch: Any) -> Abstract:
        expect(self.op, "x", x, (self.embed,), self.dtype)
        expect(self.op, "experts", experts, (self.top_k,), "int32")
        expect(self.op, "weights", weights, (self.top_k,), "float32")
        return x

    def reference(self, x: Any, experts: Any, weights: Any, weight: Sequence[Any], batch: Any) -> Any:
        x, gate, up, down = wide(x), *weight[:3]
        out = np.zeros_like(x)
        for expert in np.unique(experts):
            token, rank = np.nonzero(np.asarray(experts) == expert)
            hidden = FORMULAS[self.activation](x[token] @ wide(gate[expert]).T) * (x[token] @ wide(up[expert]).T)
            np.add.at(out, token, wide(weights)[token, rank, None] * (hidden @ wide(down[expert]).T))
        return out

    def weight(self, gate: str, up: str, down: str) -> Weight:
        """A name with {} stands for one tensor of the checkpoint per expert, one without for all of them in one."""
        e, m = self.experts, self.mlp
        wide_shape, wide_axes = (e.size, m.size, self.embed), (e.axis, m.axis, "embed")
        return Weight((
            Tensor(gate, wide_shape, wide_axes, self._each(gate)),
            Tensor(up, wide_shape, wide_axes, self._each(up)),
            Tensor(down, (e.size, self.embed, m.size), (e.axis, "embed", m.axis), self._each(down)),
        ))

    def _each(self, name: str) -> tuple[str, ...]:
        return tuple(name.format(expert) for expert in range(self.experts.size)) if "{}" in name else ()
