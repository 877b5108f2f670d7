"""write_kv, and the platform's own block operations: canonical blocks read, written and copied, to the bit."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...ops import DTYPES, Dim, StateArray, StateGroup, WriteKV
from ..address import Address
from ..case import Failed, Family, Params, Unsupported
from ..problem import Given, Problem
from .attention import BLOCKS, ROWS
from .make import DTYPE, YES_NO, judged, values
from .ragged import ORDERS, ragged

BATCHES = {f"{kind}.{name}": rows for kind, named in ROWS.items() for name, rows in list(named.items())[:4]}
HEADS = ("1", "2", "3", "8")
DIMS = ("32", "33", "64", "80", "128", "64/32")


def _write(params: Params, random: np.random.Generator) -> Problem:
    heads, block = params.int("heads"), params.int("block")
    key_dim, value_dim = params.pair("dim")
    dtype, rows, padding = params["dtype"], BATCHES[params["batch"]], (3, 2) if params.flag("padding") else (0, 0)
    made = ragged(random, rows, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, block_tokens=block, dtype=dtype,
                  order=params["order"], padding=padding)
    tokens = sum(count for count, _ in rows) + padding[0]
    k, v = (values(random, (tokens, heads, dim), dtype, params["values"]) for dim in (key_dim, value_dim))
    spec = WriteKV(kv_heads=Dim(heads, "kv_heads"), key_dim=key_dim, value_dim=value_dim, dtype=dtype)
    return Problem(spec, (k, v, Given.CELL, Given.BATCH), packed=made.packed, paged=made.paged)


def _blocks(params: Params, address: Address, rig: Any) -> tuple[str, ...]:
    """Write canonical blocks, copy some, read all: every bit is where it belongs, in each layer."""
    random, platform = address.random(), rig.platform
    block, layers, dtype = params.int("block"), params.int("layers"), params["dtype"]
    key_dim, value_dim = params.pair("dim")
    if block not in platform.capabilities.block_tokens or dtype not in platform.capabilities.dtypes:
        raise Unsupported(f"capabilities: {platform.capabilities.dtypes}, blocks of {platform.capabilities.block_tokens} tokens")
    heads, count = params.int("heads"), 9
    shapes = {"k": StateArray(heads, key_dim, dtype), "v": StateArray(heads, value_dim, dtype)}
    group = StateGroup("full", tuple(range(layers)), shapes, block_tokens=block)
    state = platform.allocate([group], [count], slots=2)
    model = {name: np.zeros((layers, heads, count, block, one.dim), DTYPES[dtype]) for name, one in shapes.items()}
    for _ in range(3):
        chosen = random.permutation(np.arange(1, count))[: int(random.integers(1, 5))]
        arrays = {name: values(random, (layers, heads, len(chosen) * block, one.dim), dtype, "special") for name, one in shapes.items()}
        platform.write_blocks(state, 0, chosen.tolist(), arrays)
        for name, array in arrays.items():
            model[name][:, :, chosen] = array.reshape(layers, heads, len(chosen), block, -1)
        sources, targets = random.permutation(np.arange(1, count))[:6].reshape(2, 3)
        platform.copy_blocks(state, 0, sources.tolist(), targets.tolist())
        for array in model.values():
            array[:, :, targets] = array[:, :, sources]
    wanted = random.permutation(count)
    read = platform.read_blocks(state, 0, wanted.tolist())
    for name, array in model.items():
        right = array[:, :, wanted].reshape(layers, heads, count * block, -1)
        if read[name].dtype != right.dtype or read[name].tobytes() != right.tobytes():
            raise Failed(f"blocks of {name} came back with other bits after writing and copying")
    return (f"{platform.name}.blocks",)


FAMILIES = [
    Family("kv.write", 1, {
        "dtype": DTYPE, "heads": HEADS, "dim": DIMS, "block": BLOCKS, "batch": tuple(list(BATCHES)[::2]),
        "order": ORDERS, "values": ("normal", "special"), "padding": YES_NO,
    }, judged(_write)),
    Family("kv.blocks", 1, {
        "dtype": DTYPE, "heads": HEADS, "dim": DIMS, "block": BLOCKS, "layers": ("1", "3"),
    }, _blocks),
]
