"""A decoder in which some layers have many MLPs, of which a router picks a few for each token."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from ..ops import Dim, Linear, Moe, Router, Weight
from .base import Precision
from .config import AGAIN, Fields
from .decoder import Decoder, Design, Mlp


@dataclass(frozen=True)
class Experts:
    """How many there are, which of them a token goes to, what they compute, and what the checkpoint calls them.

    layers: those that have experts; router: the module in such a layer that scores them; each: that of one expert ({} is its
    number), with the linears gate, up and down. mlp: the inner size of one; shared: that of the MLP beside them, which every
    token goes through (None: there is none). renormalize, sigmoid, groups, top_groups, scale: of `Router`. correction: the
    checkpoint has its bias for the choice. bias: router and experts have biases. limit, alpha: of `Moe`.
    """

    count: int
    top_k: int
    mlp: int
    layers: frozenset[int]
    router: str = "mlp.gate"
    each: str = "mlp.experts.{}"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: int | None = None
    renormalize: bool = True
    sigmoid: bool = False
    correction: bool = False
    groups: int | None = None
    top_groups: int | None = None
    scale: float | None = None
    bias: bool = False
    limit: float | None = None
    alpha: float | None = None


class MoeDecoder(Decoder):
    """The decoder of a `Design`, with `Experts` in place of the MLP in the layers that have them."""

    @staticmethod
    @abstractmethod
    def experts(config: Fields) -> Experts:
        """Raises `CheckpointError` for a config that does not describe this family."""

    def _add_experts(self, fields: Fields, d: Design, precision: Precision) -> None:
        e = self.mixture = self.experts(fields)
        if e.top_k > e.count:
            raise fields.error("num_experts_per_tok", f"must be at most the {e.count} experts", AGAIN)
        count = Dim(e.count, "experts")
        self.router = Router(
            experts=count, top_k=e.top_k, renormalize=e.renormalize, sigmoid=e.sigmoid, bias=e.correction,
            groups=e.groups, top_groups=e.top_groups, scale=e.scale,
        )
        self.gates: dict[int, Linear] = {}
        self.moe: dict[int, Moe] = {}
        for i in e.layers:
            at = f"model.layers.{i}"
            self.gates[i] = Linear(input=Dim(d.embed, "embed"), outputs=(Dim(e.count),), dtype=self.dtype, bias=e.bias,
                                   out_dtype="float32", scheme=precision.of(f"{at}.{e.router}"))
            floats = Moe(experts=count, embed=d.embed, mlp=Dim(e.mlp, "mlp"), top_k=e.top_k, activation=d.activation,
                         dtype=self.dtype, bias=e.bias, limit=e.limit, alpha=e.alpha)
            modules = [stored.name.removesuffix(".weight") for part in self._expert_weights(floats, at).tensors for stored in part.stored]
            self.moe[i] = replace(floats, stored=precision.restored(*modules))
            if e.shared is not None:
                self.mlps[i] = Mlp.of(f"{at}.mlp.shared_experts", d, e.shared, self.dtype, precision)

    def _expert_weights(self, spec: Moe, at: str) -> Weight:
        """Of the experts in the layer `at`."""
        e = self.mixture
        return spec.weight(*(f"{at}.{e.each}.{part}.weight" for part in (e.gate, e.up, e.down)))

    def _mlp_weights(self, i: int, at: str) -> dict[str, Weight]:
        e = self.mixture
        if i not in e.layers:
            return super()._mlp_weights(i, at)
        router = f"{at}.{e.router}"
        return {
            "router": self.gates[i].weight(router),
            **({"correction": self.router.weight(f"{router}.e_score_correction_bias")} if e.correction else {}),
            "experts": self._expert_weights(self.moe[i], at),
            **(super()._mlp_weights(i, at) if e.shared is not None else {}),
        }

    def _mlp(self, i: int, ops: Any, h: Any, w: Any, batch: Any) -> Any:
        e = self.mixture
        if i not in e.layers:
            return super()._mlp(i, ops, h, w, batch)
        scores = ops.linear(self.gates[i], h, w.router, batch)
        chosen, shares = ops.router(self.router, scores, *([w.correction] if e.correction else []))
        mixed = ops.moe(self.moe[i], h, chosen, shares, w.experts, batch)
        return mixed if e.shared is None else ops.add(self.add, mixed, super()._mlp(i, ops, h, w, batch))
