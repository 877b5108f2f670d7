"""Planted bugs of the router and of experts."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...ops import Moe, Router
from ...ops.elementwise import FORMULAS
from .plant import Run, Variant, kernel, stateful

Array = np.ndarray[Any, Any]
OURS = "our own"


def single(array: Any) -> Array:
    return np.asarray(array, np.float32)


@dataclass(frozen=True)
class Grouped:
    """A grouped matmul: tokens sorted by expert, one expert after the other; the defaults are right."""

    experts: Callable[[int], Sequence[int]] = range
    """Which experts are visited, in order."""
    weight: Callable[[Array], Array] = lambda weights: weights
    """[tokens, top_k] applied to the experts' answers."""
    before: Callable[[Array], Array] | None = None
    """[rows] from weights [rows], applied to the input of the experts."""
    rows: Callable[[Array, int], Array] = lambda rows, expert: rows
    """The rows that an expert computes, of those that are its own."""
    parts: Callable[[Sequence[Array]], Sequence[Array]] = lambda parts: parts
    activation: Callable[[Any], str] = lambda spec: spec.activation
    bias: Callable[[Array, Sequence[Array], int, int], Array] = lambda y, weight, place, expert: (
        y + single(weight[3 + place][expert]) if len(weight) > 3 else y)
    """(y [rows, n], the weight, 0 for the gate, 1 for up, 2 for down, the expert) -> y with its bias."""
    limits: Callable[[Any, Array, Array], tuple[Array, Array]] = lambda spec, gate, up: (
        np.minimum(gate, spec.limit), np.clip(up, -spec.limit, spec.limit))
    limited: Callable[[Any, Array, Array], Array] = lambda spec, gate, up: gate / (1 + np.exp(-spec.alpha * gate)) * (up + 1)
    """Where there is a limit: [rows, mlp] of each, cut, and what they become."""
    total: Callable[[Array], Array] = lambda array: array
    """Rounding of the sum over a token's experts."""
    spill: int = 0
    """Rows behind an expert's last that are overwritten."""

    def gated(self, spec: Moe, gate: Array, up: Array) -> Array:
        if spec.limit is None:
            return single(FORMULAS[self.activation(spec)](np.asarray(gate, np.float64))) * up
        return single(self.limited(spec, *self.limits(spec, gate, up)))


RIGHT = Grouped()


def grouped(way: Grouped, spec: Moe, x: Array, experts: Array, weights: Array, weight: Sequence[Array], batch: Any) -> Array:
    """`Moe`'s own arguments; float32 inside, rounded once."""
    gate, up, down = way.parts(weight[:3])
    flat = experts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    answers = np.zeros((len(flat), spec.embed), np.float32)
    with np.errstate(all="ignore"):
        for expert in way.experts(spec.experts.size):
            places = np.flatnonzero(flat[order] == expert)
            rows = way.rows(order[places], expert)
            if len(rows):
                values = single(x)[rows // spec.top_k]
                values = values if way.before is None else values * way.before(weights.reshape(-1)[rows])[:, None]
                opened, other = (way.bias(values @ single(part[expert]).T, weight, place, expert) for place, part in ((0, gate), (1, up)))
                answers[rows] = way.bias(way.gated(spec, opened, other) @ single(down[expert]).T, weight, 2, expert)
                answers[order[places[-1] + 1 : places[-1] + 1 + way.spill]] = answers[rows[-1]]
        ranked = answers.reshape(len(x), spec.top_k, spec.embed) * way.weight(weights)[..., None]
        out = np.zeros(x.shape, np.float32)
        for rank in range(spec.top_k):
            out = way.total(out + ranked[:, rank])
    return out.astype(x.dtype)


def experts(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "moe", source, partial(grouped, replace(RIGHT, **wrong)))


def _bf16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def _zero_tokens(spec: Moe, x: Array, *rest: Any) -> Array:
    return grouped(RIGHT, spec, x, *rest)[: len(x) or None] if len(x) else np.zeros((1, spec.embed), x.dtype)


def _sorted_weights(weights: Array) -> Array:
    """In the order of the ranks that the sort left."""
    return np.sort(weights, axis=-1)[:, ::-1]


def _backwards(number: int) -> Sequence[int]:
    return range(number - 1, -1, -1)


def _spilling() -> Run:
    """Writes past an expert's rows, from the third call on (18 of 20 runs wrong, the first two clean)."""
    calls = [0]

    def run(*arguments: Any) -> Array:
        calls[0] += 1
        return grouped(replace(RIGHT, experts=_backwards, spill=int(calls[0] > 2)), *arguments)

    return run


def _adding_up() -> Run:
    """The output is a workspace that only the first call finds zeroed."""
    kept: dict[Any, Array] = {}

    def run(spec: Moe, x: Array, *rest: Any) -> Array:
        kept[spec, x.shape] = (grouped(RIGHT, spec, x, *rest) + kept.get((spec, x.shape), np.zeros_like(x))).astype(x.dtype)
        return kept[spec, x.shape].copy()

    return run


def _bad_grouping(spec: Moe, x: Array, experts: Array, *rest: Any) -> Array:
    """Ids are taken modulo the largest multiple of 4, as if the tile of experts were full."""
    full = max(4, spec.experts.size // 4 * 4)
    return grouped(RIGHT, spec, x, np.where(experts < full, experts, 0).astype(np.int32), *rest)


# The router.

def route(spec: Router, logits: Array, bias: Sequence[Array] | None = None, *, gates: Callable[[Router, Array], Array],
          order: Callable[[Array], Array], weigh: Callable[[Router, Array, Array, Array], Array],
          ranks: Callable[[Router, Array, Array], Array], scale: Callable[[Router], float]) -> tuple[Array, Array]:
    """`Router`'s own arguments. weigh(spec, gates, kept gates, logits of the kept); ranks(spec, gates, bias)."""
    with np.errstate(all="ignore"):
        found = gates(spec, logits)
        chosen = order(found if bias is None else ranks(spec, found, bias[0]))[..., : spec.top_k]
        kept = weigh(spec, found, np.take_along_axis(found, chosen, -1), np.take_along_axis(logits, chosen, -1)) * scale(spec)
    return chosen.astype(np.int32), kept.astype(np.float32)


def ranks(spec: Router, found: Array, bias: Array) -> Array:
    return spec.ranks(found + bias)


def _grouped_by(score: Callable[[Array], Array]) -> Callable[[Router, Array, Array], Array]:
    """Groups ranked by another score: of biased gates [tokens, groups, experts of one] -> [tokens, groups]."""
    def ranked(spec: Router, found: Array, bias: Array) -> Array:
        biased = found + bias
        if spec.groups is None or not len(biased):
            return biased
        grouped = biased.reshape(len(biased), spec.groups, -1)
        order = np.argsort(-score(grouped), axis=-1, kind="stable")[:, spec.top_groups :]
        grouped = grouped.copy()
        np.put_along_axis(grouped, order[..., None], -np.inf, axis=1)
        return grouped.reshape(biased.shape)

    return ranked


def _weighed_by_bias(spec: Router, logits: Array, bias: Sequence[Array] | None = None) -> tuple[Array, Array]:
    """The kept gates have their bias still."""
    chosen, right = route(spec, logits, bias, **CAREFUL)
    if bias is None:
        return chosen, right
    kept = np.take_along_axis(gates(spec, logits) + bias[0], chosen, -1)
    return chosen, (weigh(spec, kept, kept, logits) * np.float32(spec.scale or 1)).astype(np.float32)


def _scaled_first(spec: Router, logits: Array, bias: Sequence[Array] | None = None) -> tuple[Array, Array]:
    """Scaled, then renormalized: the scale is gone."""
    chosen, right = route(spec, logits, bias, **CAREFUL)
    return chosen, right / np.float32(spec.scale or 1) if spec.renormalize else right


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=-1, keepdims=True)


def gates(spec: Router, logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits)) if spec.sigmoid else softmax(logits)


def best(found: Array) -> Array:
    return np.argsort(-found, axis=-1, kind="stable")


def weigh(spec: Router, found: Array, kept: Array, logits: Array) -> Array:
    return kept / kept.sum(axis=-1, keepdims=True) if spec.renormalize else kept


CAREFUL: dict[str, Any] = {
    "gates": gates, "order": best, "weigh": weigh, "ranks": ranks, "scale": lambda spec: np.float32(spec.scale or 1),
}


def router(name: str, source: str, **wrong: Any) -> Variant:
    return kernel(name, "router", source, partial(route, **{**CAREFUL, **wrong}))


def _last_of_ties(found: Array) -> Array:
    return found.shape[-1] - 1 - np.argsort(-found[..., ::-1], axis=-1, kind="stable")


def _sorted_by_id(spec: Router, logits: Array, *bias: Any) -> tuple[Array, Array]:
    chosen, weights = route(spec, logits, *bias, **CAREFUL)
    return np.sort(chosen, axis=-1), weights


BUGS: Sequence[Variant] = (
    experts("weight_twice", "vllm-xpu-kernels #66", before=lambda weights: weights),
    experts("weight_before_the_activation", "vllm-xpu-kernels #66", before=lambda weights: weights, weight=np.ones_like),
    experts("weight_at_the_wrong_rank", "vllm-xpu-kernels #66", weight=lambda weights: weights[:, ::-1]),
    experts("weight_of_the_sorted_ranks", OURS, weight=_sorted_weights),
    experts("weight_ignored", OURS, weight=np.ones_like),
    experts("weight_of_the_first_rank", OURS, weight=lambda weights: np.broadcast_to(weights[:, :1], weights.shape)),
    experts("last_experts_skipped", "experts not a multiple of the tile", experts=lambda n: range(n if n < 4 else n // 4 * 4)),
    kernel("ids_past_the_tile_become_0", "moe", "experts not a multiple of the tile", _bad_grouping),
    experts("writes_into_the_next_expert", "kernels-community #1153", experts=_backwards, spill=1),
    stateful("writes_into_the_next_expert_later", "moe", "kernels-community #1153", _spilling),
    experts("capacity_of_8_rows", OURS, rows=lambda rows, expert: rows[:8]),
    experts("last_row_of_an_expert_dropped", OURS, rows=lambda rows, expert: rows[: max(1, len(rows) - 1)]),
    experts("gate_and_up_swapped", OURS, parts=lambda parts: (parts[1], parts[0], parts[2])),
    experts("gelu_whatever_was_asked", OURS, activation=lambda spec: "gelu_tanh"),
    experts("sum_in_bfloat16", OURS, total=_bf16),
    kernel("empty_batch_has_a_row", "moe", "sglang #25919", _zero_tokens),
    stateful("second_call_adds_up", "moe", "triton #187", _adding_up),
    router("ties_to_the_highest_id", OURS, order=_last_of_ties),
    router("softmax_of_the_kept_only", OURS,
           weigh=lambda spec, found, kept, logits: softmax(logits) if not spec.sigmoid else weigh(spec, found, kept, logits)),
    router("never_renormalized", OURS, weigh=lambda spec, found, kept, logits: kept),
    router("renormalized_with_an_epsilon", OURS,
           weigh=lambda spec, found, kept, logits: kept / (kept.sum(-1, keepdims=True) + 1e-3) if spec.renormalize else kept),
    router("sigmoid_ignored", OURS, gates=lambda spec, logits: softmax(logits)),
    router("gates_in_bfloat16", OURS, gates=lambda spec, logits: _bf16(gates(spec, logits))),
    kernel("experts_sorted_weights_not", "router", OURS, _sorted_by_id),
    kernel("ids_in_64_bits", "router", OURS,
           lambda *given: tuple(p.astype(np.int64) if not i else p for i, p in enumerate(route(*given, **CAREFUL)))),
    router("bias_ignored", OURS, ranks=lambda spec, found, bias: spec.ranks(found)),
    kernel("bias_stays_in_the_weights", "router", OURS, _weighed_by_bias),
    router("groups_ignored", OURS, ranks=lambda spec, found, bias: found + bias),
    router("groups_by_their_best", "DeepSeek-V2's rule", ranks=_grouped_by(lambda grouped: grouped.max(-1))),
    router("groups_by_their_sum", OURS, ranks=_grouped_by(lambda grouped: grouped.sum(-1))),
    router("one_group_kept", OURS,
           ranks=lambda spec, found, bias: replace(spec, top_groups=spec.groups and 1, top_k=1).ranks(found + bias)),
    router("dropped_groups_are_zero", OURS,
           ranks=lambda spec, found, bias: np.where(np.isinf(spec.ranks(found + bias)), 0, found + bias)),
    router("scale_forgotten", OURS, scale=lambda spec: np.float32(1)),
    kernel("scaled_before_it_is_renormalized", "router", OURS, _scaled_first),
    experts("biases_of_the_first_expert", OURS, bias=lambda y, weight, place, expert: RIGHT.bias(y, weight, place, 0)),
    experts("no_bias_behind_down", OURS, bias=lambda y, weight, place, expert: RIGHT.bias(y, weight, place, expert) if place < 2 else y),
    experts("gate_and_up_swap_biases", OURS, bias=lambda y, weight, place, expert: RIGHT.bias(y, weight, (1, 0, 2)[place], expert)),
    experts("gates_cut_at_both_signs", OURS, limits=lambda spec, gate, up: (
        np.clip(gate, -spec.limit, spec.limit), np.clip(up, -spec.limit, spec.limit))),
    experts("ups_cut_at_one_sign", OURS, limits=lambda spec, gate, up: (np.minimum(gate, spec.limit), np.minimum(up, spec.limit))),
    experts("nothing_cut", OURS, limits=lambda spec, gate, up: (gate, up)),
    experts("up_counted_from_0", OURS, limited=lambda spec, gate, up: gate / (1 + np.exp(-spec.alpha * gate)) * up),
    experts("alpha_is_1", OURS, limited=lambda spec, gate, up: gate / (1 + np.exp(-gate)) * (up + 1)),
)
