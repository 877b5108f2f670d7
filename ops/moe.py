"""router and moe: which experts a token goes to, and their gated MLPs (Shazeer et al. 2017; Jiang et al. 2024)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SpecError
from .elementwise import FORMULAS
from .spec import Abstract, Dim, Spec, expect, spec, wide
from .tolerance import NAIVE_RELATIVE, elementwise
from .weights import Tensor, Weight

Array = np.ndarray[Any, Any]


@spec
class Router(Spec):
    """`ops.router(spec, logits [tokens, experts] float32[, bias]) -> (experts [tokens, top_k] int32, weights [tokens, top_k] float32)`.

    Gates are the softmax (or sigmoid) over all experts; the top_k best are kept, ties to the lowest id.
    bias: a weight [experts] that is added to the gates for the choice alone (Wang et al. 2024, arXiv 2408.15664).
    groups: the choice is among the experts of the `top_groups` best of so many groups, one beside the other, which are ranked by
    the sum of their two best (DeepSeek-V3). renormalize: the kept gates sum to 1. scale: what they are multiplied by after that.
    """

    op = "router"
    tolerance = elementwise(depth=64)

    experts: Dim
    top_k: int
    renormalize: bool = True
    sigmoid: bool = False
    bias: bool = False
    groups: int | None = None
    top_groups: int | None = None
    scale: float | None = None

    def validate(self) -> None:
        count, groups, top_groups = self.experts.size, self.groups or 1, self.top_groups or 1
        if not 0 < self.top_k <= count:
            raise SpecError(f"router: top_k {self.top_k} of {count} experts")
        if (self.groups is None) != (self.top_groups is None) or (self.groups is not None and not self.bias):
            raise SpecError("router: groups are ranked by gates with a bias, and some of them are kept; give groups, top_groups and bias")
        if groups < 1 or count % groups or not 0 < top_groups <= groups:
            raise SpecError(f"router: {top_groups} of {groups} groups of {count} experts; the groups are of one size")
        if self.top_k > top_groups * (count // groups):
            raise SpecError(f"router: top_k {self.top_k} of the {top_groups * (count // groups)} experts that {top_groups} groups have")

    def infer(self, logits: Abstract, bias: Any = None) -> tuple[Abstract, Abstract]:
        expect(self.op, "logits", logits, (self.experts.size,), "float32")
        shape = (*logits.shape[:-1], self.top_k)
        return Abstract(shape, "int32"), Abstract(shape, "float32")

    def reference(self, logits: Any, bias: Sequence[Any] | None = None) -> Any:
        logits = wide(logits)
        gates = self.gates(logits)
        ranks = logits if bias is None else self.ranks(gates + wide(bias[0]))
        experts = np.argsort(-ranks, axis=-1, kind="stable")[..., : self.top_k]
        weights = np.take_along_axis(gates, experts, axis=-1)
        weights = weights / weights.sum(axis=-1, keepdims=True) if self.renormalize else weights
        return experts.astype(np.int32), weights if self.scale is None else weights * self.scale

    def gates(self, logits: Array) -> Array:
        """[tokens, experts]."""
        if self.sigmoid:
            return np.asarray(1 / (1 + np.exp(-logits)))
        gates = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        return np.asarray(gates / gates.sum(axis=-1, keepdims=True))

    def ranks(self, biased: Array) -> Array:
        """biased gates [tokens, experts] -> the same, and -inf in groups that are not kept."""
        if self.groups is None:
            return biased
        kept = np.argsort(-self.group_scores(biased), axis=-1, kind="stable")[:, : self.top_groups]
        mask = np.zeros((len(biased), self.groups), bool)
        np.put_along_axis(mask, kept, True, axis=-1)
        return np.where(np.repeat(mask, self.experts.size // self.groups, axis=-1), biased, -np.inf)

    def group_scores(self, biased: Array) -> Array:
        """[tokens, groups]: the sum of the two best of each."""
        grouped = biased.reshape(len(biased), self.groups or 1, self.experts.size // (self.groups or 1))
        return np.asarray(np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1))

    def weight(self, name: str) -> Weight:
        """Of the bias."""
        return Weight((Tensor(name, (self.experts.size,), (self.experts.axis,)),))


@spec
class Moe(Spec):
    """`ops.moe(spec, x [tokens, embed], experts [tokens, top_k], weights [tokens, top_k], weight, batch) -> [tokens, embed]`.

    The sum over a token's experts of weight * down(activation(gate(x)) * up(x)). The weight's tensors are
    gate, up [experts, mlp, embed] and down [experts, embed, mlp]; bias: then theirs, [experts, mlp] twice and [experts, embed].
    limit, alpha: gates are cut at `limit`, ups at both signs of it, and between the linears stands
    gate * sigmoid(alpha * gate) * (up + 1) (gpt-oss). stored: how the checkpoint keeps what kernels get as floats.
    """

    op = "moe"
    tolerance = replace(NAIVE_RELATIVE, halves=2)
    """An expert's answer may be rounded before it is weighed, and once more where it has a bias."""

    experts: Dim
    embed: int
    mlp: Dim
    top_k: int
    activation: str
    dtype: str
    bias: bool = False
    limit: float | None = None
    alpha: float | None = None
    stored: str | None = None

    def validate(self) -> None:
        if (self.limit is None) != (self.alpha is None):
            raise SpecError("moe: limit and alpha belong together; give both or neither")
        if self.limit is not None and (self.limit <= 0 or self.activation != "silu"):
            raise SpecError(f"moe: a limit of {self.limit} on {self.activation}; it is above 0, and on silu")

    def infer(self, x: Abstract, experts: Abstract, weights: Abstract, weight: Any, batch: Any) -> Abstract:
        expect(self.op, "x", x, (self.embed,), self.dtype)
        expect(self.op, "experts", experts, (self.top_k,), "int32")
        expect(self.op, "weights", weights, (self.top_k,), "float32")
        return x

    def reference(self, x: Any, experts: Any, weights: Any, weight: Sequence[Any], batch: Any) -> Any:
        return self._evaluate(x, experts, weights, weight, lambda values: values)

    def magnitude(self, x: Any, experts: Any, weights: Any, weight: Sequence[Any], batch: Any) -> Any:
        """Of what the last linear adds up, and of the answers: values of both signs cancel."""
        return self._evaluate(x, experts, weights, weight, np.abs)

    def _evaluate(self, x: Any, experts: Any, weights: Any, weight: Sequence[Any], turn: Callable[[Array], Array]) -> Array:
        """turn: what is done to what the last linear is given, and to itself."""
        x, (gate, up, down), biases = wide(x), weight[:3], weight[3:]
        out = np.zeros_like(x)

        def bias(place: int, expert: int) -> Any:
            return wide(biases[place][expert]) if biases else 0.0

        for expert in np.unique(experts):
            token, rank = np.nonzero(np.asarray(experts) == expert)
            opened, raised = (x[token] @ wide(part[expert]).T + bias(place, expert) for place, part in enumerate((gate, up)))
            answers = turn(self.gated(opened, raised)) @ turn(wide(down[expert])).T + turn(np.asarray(bias(2, expert)))
            np.add.at(out, token, wide(weights)[token, rank, None] * answers)
        return out

    def gated(self, gate: Array, up: Array) -> Array:
        """What stands between the linears: [..., mlp] of each, in their dtype."""
        if self.limit is None or self.alpha is None:
            return FORMULAS[self.activation](gate) * up
        gate, up = np.minimum(gate, self.limit), np.clip(up, -self.limit, self.limit)
        return FORMULAS["silu"](self.alpha * gate) / self.alpha * (up + 1)

    def weight(self, gate: str, up: str, down: str) -> Weight:
        """A name with {} stands for one tensor of the checkpoint per expert, one without for all of them in one. A bias is `name_bias`."""
        e, m = self.experts, self.mlp
        opened, closed = ((e.size, m.size), (e.axis, m.axis)), ((e.size, self.embed), (e.axis, "embed"))
        named = ((gate, opened, (self.embed, "embed")), (up, opened, (self.embed, "embed")), (down, closed, m))
        tensors = tuple(
            Tensor(name, (*shape, size), (*axes, axis), self._each(name)) for name, (shape, axes), (size, axis) in named
        )
        biases = tuple(Tensor(f"{name}_bias", shape, axes, self._each(f"{name}_bias")) for name, (shape, axes), _ in named)
        return Weight(tensors, biases if self.bias else ())

    def _each(self, name: str) -> tuple[str, ...]:
        return tuple(name.format(expert) for expert in range(self.experts.size)) if "{}" in name else ()
