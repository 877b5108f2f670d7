"""Prefixes between engines: blocks leave in canonical form with a manifest, and come in only if they belong.

Engines may keep blocks of different sizes: what travels are tokens, and the importer cuts its own blocks out of them.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import CapacityError, ExchangeError
from ..ops import StateGroup
from .engine import Engine
from .kv.exchange import Manifest, pack, unpack
from .kv.memory import Stretch
from .kv.salt import Salt


def export_prefix(engine: Engine, tokens: Sequence[int], salt: Salt | None = None) -> list[bytes]:
    """The longest prefix of `tokens` that this engine holds, one part per state group; empty if it holds nothing.

    tokens: ids. The parts can be sent anywhere; `import_prefix` of an engine of the same model takes them.
    """
    return engine.call(lambda: _export(engine, np.asarray(tokens, "<i4"), salt or Salt()))


def import_prefix(engine: Engine, tokens: Sequence[int], parts: Sequence[bytes], salt: Salt | None = None) -> int:
    """Take over what `export_prefix` gave; how many tokens of the prefix are known now: as many as fill whole blocks here.

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
            salt=salt.digest(), adapter=salt.adapter, scales=_scales(group), parent=_parent(tokens, stretch.positions.start, salt),
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
    length = max(manifest.stretch.stop for manifest, _ in opened)
    known = tokens[:length]
    chain = memory.chain(salt)
    chain.extend(known)
    ends = []

    def write(stretches: Sequence[Stretch]) -> None:
        for stretch, (manifest, _) in zip(stretches, opened, strict=True):
            _check_tokens(manifest, known, salt)
            _check_positions(manifest, stretch, groups[stretch.group])
        for stretch, (manifest, arrays) in zip(stretches, opened, strict=True):
            ends.append(stretch.positions.stop)
            if stretch.blocks:
                runner.write_blocks(stretch.group, stretch.blocks, _cut(arrays, manifest.stretch.start, stretch.positions))

    if not memory.adopt(chain, known, write):
        raise CapacityError(f"{length} tokens do not fit into the free blocks; wait until requests have ended, "
                            "or give the KV memory more")
    return min(ends)


def _check_tokens(manifest: Manifest, known: np.ndarray[Any, Any], salt: Salt) -> None:
    """That the part was computed for these tokens, and after the same ones."""
    sent = manifest.stretch
    if (manifest.tokens, manifest.parent) != (tuple(known[sent.start : sent.stop].tolist()), _parent(known, sent.start, salt)):
        raise ExchangeError(f"the part of group {manifest.group!r} holds other tokens, or was computed after others; "
                            "export it for this prefix")


def _check_positions(manifest: Manifest, stretch: Stretch, group: StateGroup) -> None:
    """That all is there which a token after the stretch will read. What lies behind its window may be missing."""
    ours, sent = stretch.positions, manifest.stretch
    needed = ours.start if group.window is None else max(ours.start, ours.stop - group.window + 1)
    if stretch.blocks and not sent.start <= needed <= ours.stop <= sent.stop:
        raise ExchangeError(f"the part of group {group.name!r} holds positions {sent.start} to {sent.stop}, and blocks of "
                            f"{stretch.block_tokens} tokens need {needed} to {ours.stop} here; export whole blocks of both sides")


def _cut(arrays: Mapping[str, np.ndarray[Any, Any]], first: int, positions: range) -> dict[str, np.ndarray[Any, Any]]:
    """[layers, kv_heads, tokens, dim] from position `first` on -> those of `positions`; zeros where nothing was sent."""
    missing = max(0, first - positions.start)
    start, stop = positions.start + missing - first, positions.stop - first
    return {name: np.pad(array[:, :, start:stop], ((0, 0), (0, 0), (missing, 0), (0, 0))) for name, array in arrays.items()}


def _scales(group: StateGroup) -> dict[str, str] | None:
    """An array of codes -> the array with its scales."""
    return {name: f"{name}_scale" for name in group.arrays if f"{name}_scale" in group.arrays} or None


def _parent(tokens: np.ndarray[Any, Any], first: int, salt: Salt) -> str:
    """A name for all that stands before position `first`, whatever the size of blocks."""
    return hashlib.sha256(salt.encode() + tokens[:first].tobytes()).hexdigest() if first else ""
