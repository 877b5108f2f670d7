"""Planted bugs of the core, as patches while a variant runs: prefix keys, blocks, preemption, slots, resolution."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from os import urandom
from typing import Any
from unittest.mock import patch

import numpy as np

from ...core import runner as runner_module
from ...core import transfer
from ...core.edits import Edits
from ...core.kv import exchange, prefix
from ...core.kv.blocks import BlockPool
from ...core.kv.lease import PagedGroup
from ...core.kv.memory import KVMemory
from ...core.kv.prefix import Node, PrefixIndex
from ...core.kv.salt import Salt
from ...core.resolve import BoundOps, _Resolver
from ...core.scheduler.scheduler import Scheduler
from ...core.scheduler.sequence import Sequence as Running
from ...ops import BatchShape, Kernel, Linear, Packed, unpack
from ...platforms.contract import Options, Step
from ...platforms.families.numpy import HostState
from . import linear
from .plant import MutantPlatform, Variant

OURS = "our own"


def core(name: str, source: str, families: Sequence[str], owner: Any, member: str, wrong: Any) -> Variant:
    """`owner.member` is `wrong` meanwhile."""
    return Variant(f"engine.{name}", "engine", source, MutantPlatform, tuple(families), lambda: patch.object(owner, member, wrong))


def after(owner: Any, member: str, then: Callable[..., None]) -> Callable[..., Any]:
    """The right method, and `then(self, *arguments)` behind it."""
    right = getattr(owner, member)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        answer = right(self, *arguments, **named)
        then(self, *arguments)
        return answer

    return method


# Prefix keys.

def _found_by_key(self: PrefixIndex, parent: Node | None, key: bytes, tokens: bytes) -> Node | None:
    return self._nodes.get(key)


def _joined(self: Salt) -> bytes:
    return "".join((self.adapter, self.media, self.tenant)).encode()


def _own_tokens_only(self: PrefixIndex, keys: list[bytes], origin: bytes, tokens: memoryview) -> None:
    """A block is named by its own tokens, whatever stands before them."""
    width = 4 * self.block_tokens
    keys += [self._digest(bytes(tokens[first : first + width])) for first in range(len(keys) * width, len(tokens) - width + 1, width)]


def _found_by_tokens(self: PrefixIndex, parent: Node | None, key: bytes, tokens: bytes) -> Node | None:
    node = self._nodes.get(key)
    return node if node is not None and node.tokens == tokens else None


@contextmanager
def _position_free() -> Any:
    with patch.object(PrefixIndex, "extend", _own_tokens_only), patch.object(PrefixIndex, "find", _found_by_tokens):
        yield


def _cut_from_the_start(arrays: Mapping[str, Any], first: int, positions: range) -> dict[str, Any]:
    """Blocks of another size take the first tokens that were sent."""
    return {name: np.pad(array, ((0, 0), (0, 0), (0, len(positions)), (0, 0)))[:, :, : len(positions)] for name, array in arrays.items()}


def _unproved(data: bytes) -> tuple[bytes, memoryview]:
    """The checksum is not looked at."""
    _, _, size = exchange.PREFIX.unpack_from(data)
    body = memoryview(data)[: -exchange.DIGEST_BYTES]
    return bytes(body[exchange.PREFIX.size : exchange.PREFIX.size + size]), body[exchange.PREFIX.size + size :]


KEYS = [
    core("collision_accepted", "vLLM #12621, openvino.genai #3722", ["engine.collisions"], PrefixIndex, "find", _found_by_key),
    core("salt_parts_in_one_domain", "vLLM #44701", ["engine.salts"], Salt, "encode", _joined),
    core("salt_left_out", "vLLM #44701", ["engine.salts"], Salt, "encode", lambda self: b""),
    core("keys_of_this_process", "LMCache #1139, #2136; vLLM #51875", ["engine.keys"], prefix, "DOMAIN", urandom(8)),
    core("root_without_the_block_size", OURS, ["engine.keys"], PrefixIndex, "origin",
         lambda self, salt: hashlib.sha256(salt.encode()).digest()),
    Variant("engine.blocks_named_by_their_own_tokens", "engine", OURS, MutantPlatform, ("engine.prefix", "engine.keys"), _position_free),
    core("checksum_not_looked_at", OURS, ["engine.refused"], exchange, "_open", _unproved),
    core("tokens_not_looked_at", OURS, ["engine.refused"], transfer, "_check_tokens", lambda *arguments: None),
    core("blocks_cut_from_the_start", OURS, ["exchange.prefix"], transfer, "_cut", _cut_from_the_start),
    core("dtype_and_model_not_looked_at", "LMCache #1856", ["engine.refused"], exchange, "_check_expected", lambda *arguments: None),
]


# Blocks.

def _freed_by_the_first(self: BlockPool, blocks: Iterable[int]) -> None:
    """A shared block is free when the first of its holders lets go, and again when the next does."""
    for block in blocks:
        self._holders[block] = 0
        self._cached.pop(block, None)
        self._free.append(block)


def _not_evicted(self: BlockPool, blocks: int) -> list[int]:
    """The index still names the block that was taken for something else."""
    taken = []
    for _ in range(blocks):
        block = self._free.pop() if self._free else self._cached.popitem(last=False)[0]
        self._holders[block] = 1
        taken.append(block)
    return taken


def _last_one_leaks(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, blocks: right(self, list(blocks)[:-1])


def _not_computed_yet(self: Scheduler, sequence: Running) -> None:
    """All known tokens enter the index, those that no step has computed with them."""
    if sequence.lease is not None and sequence.known >= sequence.lease.commit_at:
        self._memory.commit(sequence.lease, sequence.chain, sequence.tokens[: sequence.known])
        self._wake(self._leaders.advance(sequence, sequence.known // self._lead_tokens) if self._lead_tokens else [])


def _commit_ahead(self: Scheduler, draft: Any, sequence: Running, count: int, *, fresh: bool) -> None:
    """As soon as a row is planned, its whole prompt counts as computed."""
    RIGHT_ROW(self, draft, sequence, count, fresh=fresh)
    if sequence not in draft.written:
        draft.written.append(sequence)


RIGHT_ROW = Scheduler._row


@contextmanager
def _early_commit() -> Any:
    with patch.object(Scheduler, "_row", _commit_ahead), patch.object(Scheduler, "_commit", _not_computed_yet):
        yield


def _resumed_where_it_was(self: Scheduler, sequence: Running, hit_tokens: int, now: float) -> None:
    """A preempted sequence goes on behind what it had computed, in blocks that are new."""
    known = min(sequence.computed, sequence.known - 1)
    RIGHT_START(self, sequence, max(hit_tokens, known), now)


RIGHT_START = Scheduler._start

BLOCKS = [
    core("shared_block_freed_twice", OURS, ["engine.prefix", "engine.preempted", "engine.samples"], BlockPool, "release",
         _freed_by_the_first),
    core("taken_block_still_indexed", OURS, ["engine.preempted", "engine.slots"], BlockPool, "take", _not_evicted),
    core("last_block_leaks", OURS, ["engine.batched"], BlockPool, "release", _last_one_leaks(BlockPool.release)),
    Variant("engine.blocks_found_before_they_are_computed", "engine", "vLLM #45704", MutantPlatform,
            ("engine.prefix",), _early_commit),
    core("preempted_goes_on_where_it_was", "neuralmagic/vllm #92, LMCache #1969", ["engine.preempted"], Scheduler, "_start",
         _resumed_where_it_was),
    core("index_kept_after_a_failed_step", OURS, ["engine.failed_step"], KVMemory, "forget", lambda self: None),
    core("window_slides_a_block_early", "mlx-lm #390", ["engine.chunked", "engine.batched"], PagedGroup, "first_needed",
         lambda self, start: 0 if self.window is None else max(0, start - self.window + 1 + self.block_tokens) // self.block_tokens),
    core("gaps_in_a_hit_not_seen", OURS, ["engine.prefix"], KVMemory, "_reach", lambda self, group, path, limit: limit),
]


# The schedule.

def _packed(change: Callable[[Any, Any], None]) -> Callable[..., Packed]:
    """The right batch, changed by change(batch, sampling) in place."""
    right = runner_module.pack

    def pack(*arguments: Any, **named: Any) -> Packed:
        packed = right(*arguments, **named)
        change(*unpack(*packed))
        return packed

    return pack


def _seeds_by_place(batch: Any, sampling: Any) -> None:
    sampling.seed_low[:] += np.arange(len(sampling.seed_low), dtype=np.int32)


def _positions_by_step(batch: Any, sampling: Any) -> None:
    sampling.position[:] = sampling.position % 7 + len(sampling.position)


def _slots_by_place(batch: Any, sampling: Any) -> None:
    batch.sample_slot[:] = 1 + np.arange(len(batch.sample_slot))


def _filters_of_the_first(batch: Any, sampling: Any) -> None:
    sampling.top_k[:], sampling.top_p[:] = sampling.top_k[:1], sampling.top_p[:1]


def _stale_source(batch: Any, sampling: Any) -> None:
    """The token comes from the slot beside its row's."""
    batch.source[:] = np.where(batch.source > 1, batch.source - 1, batch.source)


def _one_slot(self: Scheduler, *arguments: Any) -> None:
    self._slots = [1] * len(self._slots)


def _not_waiting(self: Running, *arguments: Any) -> None:
    self.needs_host = False


def _min_tokens_forgotten(row: Any, drawn: Any) -> Edits | None:
    bias = dict(sorted((row.request.params.logit_bias or {}).items()))
    none = np.zeros(len(bias), int)
    return Edits(np.array(list(bias), int), none, none, np.array(list(bias.values()))) if bias else None


def _late_token_kept(self: Scheduler, sequence: Running, token: int) -> Any:
    """A token that comes after an end token is handed out all the same: the end is only seen one token later."""
    stops, sequence.stop_ids = sequence.stop_ids, frozenset()
    if sequence.known > sequence.prompt_tokens and int(sequence.tokens[sequence.known - 1]) in stops:
        sequence.stop_ids = frozenset({token})
    update = RIGHT_DRAW(self, sequence, token)
    sequence.stop_ids = stops
    return update


RIGHT_DRAW = Scheduler._draw


def _abort_without_release(self: Scheduler, request_id: str, now: float) -> list[Any]:
    """The blocks of an aborted request are nobody's."""
    updates = []
    for sequence in list(self._sequences.get(request_id, {}).values()):
        with patch.object(KVMemory, "release", lambda self, lease: None):
            updates.append(self._end(sequence, "abort", None))
    return updates


SCHEDULE = [
    core("seeds_by_place_in_the_batch", "sglang #35697", ["engine.seeded", "engine.batched"], runner_module, "pack",
         _packed(_seeds_by_place)),
    core("positions_by_batch", OURS, ["engine.batched", "engine.seeded"], runner_module, "pack", _packed(_positions_by_step)),
    core("last_tokens_by_place", "stale slot", ["engine.overlap", "engine.batched"], runner_module, "pack", _packed(_slots_by_place)),
    core("filters_of_the_first_request", OURS, ["engine.seeded"], runner_module, "pack", _packed(_filters_of_the_first)),
    core("token_of_the_slot_beside", "stale slot", ["engine.overlap", "engine.batched"], runner_module, "pack", _packed(_stale_source)),
    core("one_slot_for_all", "stale slot", ["engine.batched"], Scheduler, "__init__", after(Scheduler, "__init__", _one_slot)),
    core("penalties_planned_ahead", OURS, ["engine.overlap"], Running, "__init__", after(Running, "__init__", _not_waiting)),
    core("min_tokens_forgotten", OURS, ["engine.min_tokens"], runner_module, "edits", _min_tokens_forgotten),
    core("late_token_kept", OURS, ["engine.stop"], Scheduler, "_draw", _late_token_kept),
    core("aborted_blocks_leak", OURS, ["engine.abort"], Scheduler, "abort", _abort_without_release),
]


# Resolution and steps.

def _any_kernel(self: Any, kernel: Kernel, local: Any, asked: str | None) -> str | None:
    """Explicit choices and deterministic mode are taken for hints."""
    return kernel.supports(local)


def _unasked(self: BoundOps, resolution: Any) -> None:
    """Kernels are bound without being asked."""
    self._table = {choice.spec: partial(choice.kernel.run, choice.local) for choice in resolution if choice.kernel is not None}


def _picky() -> MutantPlatform:
    """A linear that refuses biases."""
    def supports(spec: Linear) -> str | None:
        return "adds no bias yet" if spec.bias else None

    return MutantPlatform(kernels=[Kernel("linear", "planted.picky", supports, partial(linear.multiply, linear.RIGHT))])


@contextmanager
def _choices_ignored() -> Any:
    with patch.object(_Resolver, "_against", _any_kernel), patch.object(_Resolver, "_check_name", lambda self, op, name: None):
        yield


class CompiledByTokens(MutantPlatform):
    """Compiled steps are kept by the number of tokens alone."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.kept: dict[int, Step] = {}

    def compile(self, step: Step, shape: BatchShape) -> Step:
        return self.kept.setdefault(shape.tokens, step)


class OnDemand(MutantPlatform):
    """A step runs when somebody asks for its result."""

    def submit(self, compiled: Step, weights: Any, state: HostState, packed: Packed) -> Future[Any]:
        pending: Future[Any] = Future()
        waited = pending.result

        def result(timeout: float | None = None) -> Any:
            if not pending.done():
                pending.set_result(compiled(weights, state, *unpack(*packed)))
            return waited(timeout)

        pending.result = result  # type: ignore[method-assign]
        return pending


class StateOfTheFirst(MutantPlatform):
    """Every allocation of one size is the same memory."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.states: dict[Any, HostState] = {}

    def allocate(self, groups: Sequence[Any], blocks: Sequence[int], slots: int) -> HostState:
        key = tuple((group.name, count) for group, count in zip(groups, blocks, strict=True)), slots
        return self.states.setdefault(key, super().allocate(groups, blocks, slots))


PLATFORM = [
    Variant("engine.explicit_choice_ignored", "engine", "vLLM #50292", MutantPlatform, ("contract.explicit",), _choices_ignored),
    core("deterministic_mode_is_a_hint", "vLLM #40628", ["engine.deterministic"], _Resolver, "_against", _any_kernel),
    Variant("engine.refused_kernel_bound", "engine", "vLLM #31643", _picky, ("linear.",),
            lambda: patch.object(BoundOps, "__init__", _unasked)),
    Variant("engine.steps_compiled_by_tokens_alone", "engine", "flash-attention #2886", CompiledByTokens, ("contract.", "linear.")),
    Variant("engine.steps_run_on_demand", "engine", "vLLM #45704", OnDemand, ("contract.",)),
    Variant("engine.states_share_memory", "engine", OURS, StateOfTheFirst, ("contract.",)),
]

BUGS: Sequence[Variant] = (*KEYS, *BLOCKS, *SCHEDULE, *PLATFORM)
