"""A decoder in which some layers have many MLPs, of which a router picks a few for each token."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..ops import Dim, Linear, Moe, Router, Weight
from .base import Precision
from .config import AGAIN, Fields
from .decoder import Decoder, Design


@dataclass(frozen=True)
class Experts:
    """How many there are, how many a token goes to, and what the checkpoint calls them.

    mlp: the inner size of one; renormalize: the kept gates are made to sum to 1; layers: those that have experts.
    block: the module in a layer that holds the router (`gate`) and `experts`; gate, up, down: an expert's linears.
    """

    count: int
    top_k: int
    mlp: int
    renormalize: bool
    layers: frozenset[int]
    block: str
    gate: str
    up: str
    down: str


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
        for layer in e.layers:
            _refuse_quantized(precision, [f"model.layers.{layer}.{e.block}.experts.{n}.{part}" for n in range(e.count)
                                          for part in (e.gate, e.up, e.down)])
        count = Dim(e.count, "experts")
        self.gates = {i: Linear(
            input=Dim(d.embed, "embed"), outputs=(Dim(e.count),), dtype=self.dtype, out_dtype="float32",
            scheme=precision.of(f"model.layers.{i}.{e.block}.gate"),
        ) for i in e.layers}
        self.router = Router(experts=count, top_k=e.top_k, renormalize=e.renormalize)
        self.moe = Moe(
            experts=count, embed=d.embed, mlp=Dim(e.mlp, "mlp"), top_k=e.top_k, activation=d.activation, dtype=self.dtype
        )

    def _mlp_weights(self, i: int, at: str) -> dict[str, Weight]:
        e = self.mixture
        if i not in e.layers:
            return super()._mlp_weights(i, at)
        names = (f"{at}.{e.block}.experts.{{}}.{part}.weight" for part in (e.gate, e.up, e.down))
        return {"router": self.gates[i].weight(f"{at}.{e.block}.gate"), "experts": self.moe.weight(*names)}

    def _mlp(self, i: int, ops: Any, h: Any, w: Any, batch: Any) -> Any:
        if i not in self.mixture.layers:
            return super()._mlp(i, ops, h, w, batch)
        chosen, shares = ops.router(self.router, ops.linear(self.gates[i], h, w.router, batch))
        return ops.moe(self.moe, h, chosen, shares, w.experts, batch)


def _refuse_quantized(precision: Precision, modules: list[str]) -> None:
    for module in modules:
        if (scheme := precision.scheme(module)) is not None:
            raise CheckpointError(
                f"{module} is quantized ({scheme}), and quantized experts are not computed yet. "
                "Remedy: leave the quantization out, or use the unquantized checkpoint."
            )
