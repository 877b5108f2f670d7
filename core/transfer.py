"""Prefixes between engines: blocks leave in canonical form with a manifest, and come in only if they belong."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CapacityError, ExchangeError
from ..ops import StateGroup
from .engine import Engine
from .kv.chain import Chain
from .kv.exchange import Manifest, pack, unpack
from .kv.memory import Stretch
from .kv.salt import Salt


def export_prefix(engine: Engine, tokens: Sequence[int], salt: Salt | None = None) -> list[bytes]:
    """The longest prefix of `tokens` that this engine holds, one part per state group; empty if it holds nothing.

    tokens: ids. The parts can be sent anywhere; `import_prefix` of an engine of the same model takes them.
    """
    return engine.call(lambda: _export(engine, np.asarray(tokens, "<i4"), salt or Salt()))


def import_prefix(engine: Engine, tokens: Sequence[int], parts: Sequence[bytes], salt: Salt | None = None) -> int:
    """Take over what `export_prefix` gave; how many tokens of the prefix are known now.

    Raises `ExchangeError` for parts of another model, prefix or salt, or with a changed byte; `CapacityError` where the
    pool is too full; and then nothing has changed.
    """
    return engine.call(lambda: _import(engine, np.asarray(tokens, "<i4"), parts, salt or Salt()))


def _export(engine: Engine, tokens: np.ndarray[Any, Any], salt: Salt) -> list[bytes]:
    memory, runner = engine.scheduler.memory, engine.runner
    chain = memory.chain(salt)
    chain.extend(tokens)
    parts = []
    for stretch in memory.stored(chain, tokens):
        if not stretch.blocks:
            return []
        group = runner.loaded.model.states[stretch.group]
        manifest = Manifest(
            model=runner.loaded.fingerprint, group=group.name, block_tokens=group.block_tokens,
            tokens=tuple(tokens[stretch.positions].tolist()), positions=tuple(stretch.positions), rope=True,
            salt=salt.digest(), adapter=salt.adapter, scales=_scales(group), parent=_parent(chain, stretch),
        )
        parts.append(pack(manifest, runner.read_blocks(stretch.group, stretch.blocks)))
    return parts


def _import(engine: Engine, tokens: np.ndarray[Any, Any], parts: Sequence[bytes], salt: Salt) -> int:
    memory, runner = engine.scheduler.memory, engine.runner
    groups = runner.loaded.model.states
    if len(parts) != len(groups):
        raise ExchangeError(f"{len(parts)} parts were sent, and this model has {len(groups)} state groups; send one for each")
    model, digest = runner.loaded.fingerprint, salt.digest()
    opened = [unpack(part, model=model, group=group, salt=digest) for part, group in zip(parts, groups, strict=True)]
    length = max(manifest.positions[-1] + 1 for manifest, _ in opened)
    known = tokens[:length]
    chain = memory.chain(salt)
    chain.extend(known)

    def write(stretches: Sequence[Stretch]) -> None:
        for stretch, (manifest, _) in zip(stretches, opened, strict=True):
            ours = (tuple(stretch.positions), tuple(known[stretch.positions].tolist()), _parent(chain, stretch))
            if ours != (manifest.positions, manifest.tokens, manifest.parent):
                raise ExchangeError(f"the part of group {manifest.group!r} holds other tokens, or was computed after others; "
                                    "export it for this prefix")
        for stretch, (_, arrays) in zip(stretches, opened, strict=True):
            runner.write_blocks(stretch.group, stretch.blocks, arrays)

    if not memory.adopt(chain, known, write):
        raise CapacityError(f"{length} tokens do not fit into the free blocks; wait until requests have ended, "
                            "or give the KV memory more")
    return length


def _scales(group: StateGroup) -> dict[str, str] | None:
    """An array of codes -> the array with its scales."""
    return {name: f"{name}_scale" for name in group.arrays if f"{name}_scale" in group.arrays} or None


def _parent(chain: Chain, stretch: Stretch) -> str:
    """The key of all that stands before the stretch. One index serves every group of one block size."""
    return chain.keys[0][stretch.first - 1].hex() if stretch.first else ""
