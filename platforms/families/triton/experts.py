"""router and moe: pairs are cut into tiles of one expert each, and every expert's weights are read where they lie."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ....ops import Kernel, Moe, Router, Support
from ..supports import Plain
from ..torch.experts import prepare
from ..torch.ragged import bound, cut
from . import experts_kernel
from .device import Device
from .linear import ceil_div, lines

PLAIN = Plain("Triton")
MOST_EXPERTS = 1024
FEW_PAIRS = 2048
"""Up to so many, each tile counts all pairs by itself; more are sorted first."""


def kernels(device: Device) -> Sequence[Kernel]:
    return [
        Kernel("router", "triton.router", routes, partial(router, device)),
        Kernel("moe", "triton.moe", mixes, partial(moe, device), partial(prepare, device.torch)),
    ]


def routes(spec: Router) -> Support:
    if spec.bias or spec.groups or spec.scale is not None:
        return "chooses among all experts by their gates alone, without a bias, groups or a scale"
    return None if spec.experts.size <= MOST_EXPERTS else f"{spec.experts.size} experts; a program holds the logits of {MOST_EXPERTS}"


def mixes(spec: Moe) -> Support:
    if spec.bias or spec.limit is not None or spec.alpha is not None:
        return "computes experts without biases, and with a plain activation"
    return PLAIN.float_dtype(spec)


def router(device: Device, spec: Router, logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [tokens, experts] float32 -> ids and weights [tokens, top_k]."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    rows, experts = logits.shape
    chosen = logits.new_empty((rows, spec.top_k), dtype=torch.int32)
    weights = logits.new_empty((rows, spec.top_k))
    config = device.configured("router", experts=experts)
    device.launch(experts_kernel.router, (ceil_div(rows, config.meta["BLOCK_ROWS"]),), chosen, weights, logits, rows, experts,
                  logits.stride(0), TOP_K=spec.top_k, SIGMOID=spec.sigmoid, RENORMALIZE=spec.renormalize, LANES=_lanes(experts),
                  PLACES=_lanes(spec.top_k), config=config)
    return chosen, weights


def moe(
    device: Device, spec: Moe, x: Tensor, experts: Tensor, weights: Tensor, weight: Sequence[Tensor], batch: object,
) -> Tensor:
    """x [tokens, embed], experts and weights [tokens, top_k] -> [tokens, embed]."""
    out = x.new_empty(x.shape)
    if not len(x):
        return out
    x = x if x.stride(-1) == 1 else x.contiguous()
    pairs, mlp = experts.numel(), spec.mlp.size
    config = device.configured("experts", dtype=spec.dtype, lines=lines(x, weight[0][0], weight[1][0]),
                               rows=ceil_div(pairs, spec.experts.size))
    tile = config.meta["BLOCK_ROWS"]
    pair, expert = tiled(device, spec, experts, tile)
    hidden, made = x.new_empty((pairs, mlp)), x.new_empty((pairs, spec.embed))
    block, step = config.meta["BLOCK_OUTPUTS"], config.meta["BLOCK_INPUTS"]
    device.launch(experts_kernel.experts_hidden, (len(pair), ceil_div(mlp, block)), hidden, x, weight[0], pair, expert, mlp, spec.embed,
                  x.stride(0), TOP_K=spec.top_k, KIND=spec.activation, WHOLE_STEPS=spec.embed % step == 0, config=config)
    device.launch(experts_kernel.experts_down, (len(pair), ceil_div(spec.embed, block)), made, hidden, weight[1], pair, expert, mlp,
                  spec.embed, WHOLE_STEPS=mlp % step == 0, config=config)
    config = device.configured("experts_sum", embed=spec.embed)
    device.launch(experts_kernel.experts_sum, (len(x), ceil_div(spec.embed, config.meta["BLOCK"])), out, made, weights.contiguous(),
                  spec.embed, TOP_K=spec.top_k, config=config)
    return out


def tiled(device: Device, spec: Moe, experts: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """experts [tokens, top_k] -> (pair [tiles, tile], expert [tiles]) int32: the pairs of each tile, -1 where there is none.

    The device finds out which tiles are used; the host only bounds their number, and so never waits.
    """
    (tokens, _), pairs = experts.shape, experts.numel()
    count = bound(pairs, spec.experts.size, tokens, tile)
    if pairs > FEW_PAIRS or spec.experts.size > MOST_EXPERTS:
        return _sorted(spec, experts, tile, count)
    pair, expert = experts.new_empty((count, tile)), experts.new_empty(count)
    device.launch(experts_kernel.experts_tiles, (count,), pair, expert, experts.contiguous(), pairs, LANES=_lanes(spec.experts.size),
                  BLOCK_ROWS=tile, config=device.configured("experts_tiles", experts=spec.experts.size))
    return pair, expert


def _sorted(spec: Moe, experts: Tensor, tile: int, count: int) -> tuple[Tensor, Tensor]:
    by_expert = torch.sort(experts.flatten(), stable=True)
    ids = torch.arange(spec.experts.size, dtype=experts.dtype, device=experts.device)
    ends = torch.searchsorted(by_expert.values, ids, right=True)
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    tiles = cut(ends - starts, tile, count)
    place = (starts[tiles.group][:, None] + tiles.lane).clamp(max=experts.numel() - 1)
    return torch.where(tiles.used, by_expert.indices[place], -1).int(), tiles.group.int()


def _lanes(experts: int) -> int:
    return 1 << (experts - 1).bit_length()
