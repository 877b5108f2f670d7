"""write_kv in floats and in codes, and the platform's own block operations: canonical blocks read, written and copied, to the bit."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...ops import DTYPES, Dim, StateGroup, WriteKV
from ..address import Address
from ..case import Failed, Family, Params, Unsupported
from ..problem import Array, Given, Problem
from .attention import BLOCKS, CODES, ROWS
from .make import DTYPE, YES_NO, judged, values
from .ragged import ORDERS, ragged

BATCHES = {f"{kind}.{name}": rows for kind, named in ROWS.items() for name, rows in list(named.items())[:4]}
HEADS = ("1", "2", "3", "8")
DIMS = ("32", "33", "64", "80", "128", "64/32")


def _write(params: Params, random: np.random.Generator, order: str, **form: Any) -> Problem:
    """form: what the spec has besides sizes and dtype."""
    heads, block = params.int("heads"), params.int("block")
    key_dim, value_dim = params.pair("dim")
    dtype, rows, padding = params["dtype"], BATCHES[params["batch"]], (3, 2) if params.flag("padding") else (0, 0)
    spec = WriteKV(kv_heads=Dim(heads, "kv_heads"), key_dim=key_dim, value_dim=value_dim, dtype=dtype, **form)
    made = ragged(random, rows, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, block_tokens=block, dtype=dtype,
                  order=order, padding=padding, **form)
    tokens = sum(count for count, _ in rows) + padding[0]
    k, v = (values(random, (tokens, heads, dim), dtype, params["values"]) for dim in (key_dim, value_dim))
    return Problem(spec, (k, None if spec.latent else v, Given.CELL, Given.BATCH), packed=made.packed, paged=made.paged)


def _write_latent(params: Params, random: np.random.Generator) -> Problem:
    return _write(params, random, "scattered", kv_dtype=None if params["kv"] == "none" else params["kv"], latent=True)


def _blocks(params: Params, address: Address, rig: Any) -> tuple[str, ...]:
    """Write canonical blocks, copy some, read all: every bit is where it belongs, in each layer."""
    random, platform = address.random(), rig.platform
    block, layers, dtype = params.int("block"), params.int("layers"), params["dtype"]
    key_dim, value_dim = params.pair("dim")
    if block not in platform.capabilities.block_tokens or dtype not in platform.capabilities.dtypes:
        raise Unsupported(f"capabilities: {platform.capabilities.dtypes}, blocks of {platform.capabilities.block_tokens} tokens")
    heads, count = params.int("heads"), 9
    cell = WriteKV(kv_heads=Dim(heads), key_dim=key_dim, value_dim=value_dim, dtype=dtype, kv_dtype=params.values.get("kv"))
    group = StateGroup("full", tuple(range(layers)), cell.arrays, block_tokens=block)
    state = platform.allocate([group], [count], slots=2)
    model = {name: np.zeros((layers, heads, count, block, one.dim), DTYPES[one.dtype]) for name, one in group.arrays.items()}
    for _ in range(3):
        chosen = random.permutation(np.arange(1, count))[: int(random.integers(1, 5))]
        arrays = {name: _numbers(random, (layers, heads, len(chosen) * block, one.dim), one.dtype) for name, one in group.arrays.items()}
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


def _numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Any codes, or floats of which some are special."""
    if dtype not in CODES:
        return values(random, shape, dtype, "special")
    return random.integers(0, 256, shape, np.uint8).view(DTYPES[dtype])


FAMILIES = [
    Family("kv.write", 1, {
        "dtype": DTYPE, "heads": HEADS, "dim": DIMS, "block": BLOCKS, "batch": tuple(list(BATCHES)[::2]),
        "order": ORDERS, "values": ("normal", "special"), "padding": YES_NO,
    }, judged(lambda params, random: _write(params, random, params["order"]))),
    Family("kv.write.codes", 1, {
        "dtype": DTYPE, "kv": CODES, "heads": ("3",), "dim": ("64", "33", "64/32"), "block": ("16", "1"),
        "batch": ("decode.edge", "prefill.long", "mixed.five"), "values": ("normal", "special"), "padding": YES_NO[1:],
    }, judged(lambda params, random: _write(params, random, "scattered", kv_dtype=params["kv"]))),
    Family("kv.write.latent", 1, {
        "dtype": DTYPE, "kv": ("none", *CODES), "heads": ("1", "3"), "dim": ("96/64", "576/512"), "block": ("16",),
        "batch": ("prefill.long", "chunked.odd"), "values": ("normal",), "padding": YES_NO[:1],
    }, judged(_write_latent)),
    Family("kv.blocks", 1, {
        "dtype": DTYPE, "heads": HEADS, "dim": DIMS, "block": BLOCKS, "layers": ("1", "3"),
    }, _blocks),
    Family("kv.blocks.codes", 1, {
        "dtype": DTYPE[:1], "kv": CODES, "heads": ("1", "3"), "dim": ("64", "33", "64/32", "576"), "block": ("16", "1"),
        "layers": ("1", "3"),
    }, _blocks),
]
