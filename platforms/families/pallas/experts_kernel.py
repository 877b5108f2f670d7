"""Products of sorted rows with their experts' weights on a TPU: each tile of rows belongs to one expert.

    hidden = gated(x gate[expert], x up[expert])        answer = hidden down[expert] + bias[expert]

Grid: (outputs, tiles), tiles one after the other, so that the weights of an expert stay where they are from tile to tile.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

F32 = jnp.float32


def experts_kernel(finish: Callable[..., Any], weights: int, facts: Any, x: Any, *refs: Any) -> None:
    """facts [tiles + 1]: each tile's expert, then how many tiles are used; the others' output is left as it is.

    x [rows, inputs]. refs: so many weights [1, inputs, outputs], their biases [1, 1, outputs] or none, and out [rows, outputs].
    finish(sums in float32 ...) -> what is rounded.
    """
    *operands, out = refs

    @pl.when(pl.program_id(1) < facts[facts.shape[0] - 1])
    def used() -> None:
        rows = x[...]
        precision = jax.lax.Precision.HIGHEST if rows.dtype == F32 else None
        sums = [jax.lax.dot_general(rows, one[0], (((1,), (0,)), ((), ())), precision, F32) for one in operands[:weights]]
        sums = [y + bias[0].astype(F32) for y, bias in zip(sums, operands[weights:], strict=True)] if operands[weights:] else sums
        out[...] = finish(*sums).astype(out.dtype)
