"""The contract's memory and steps: every bit comes back, steps see the ones before them, and an error ends where it happened."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ops import DTYPES, BatchShape, Dim, Sample, StateArray, StateGroup, WriteKV, empty
from ..address import Address
from ..case import Failed, Family, Params, Unsupported
from ..examples import PLAIN
from ..rig import IDLE, Rig
from .contract import checked, expect

# Memory


def _put_fetch(params: Params, address: Address, rig: Rig) -> None:
    """Every bit comes back: any pattern, any rank, empty, scalar, a slice of something larger."""
    dtype, random = params["dtype"], address.random()
    if dtype not in (*rig.platform.capabilities.dtypes, "int32"):
        raise Unsupported(f"capabilities: {', '.join(rig.platform.capabilities.dtypes)}")
    whole = random.integers(0, 256, (6, 10, DTYPES[dtype].itemsize), np.uint8).view(DTYPES[dtype])[..., 0]
    for host in (whole, whole[:1], whole[:0], whole[0, 0], whole[1:4, 2:7], whole[::2, ::3], whole.T, whole.reshape(3, 2, 10)):
        back = rig.platform.fetch(rig.platform.put(host))
        same = back.dtype == host.dtype and back.shape == host.shape and back.tobytes() == host.tobytes()
        expect(same, f"an array {list(host.shape)} of {dtype} came back as {list(back.shape)} of {back.dtype} or with other bits")


def _groups(dtype: str, block: int) -> list[StateGroup]:
    """Two groups that share no layer, of different sizes."""
    return [
        StateGroup("full", (0, 2), {"k": StateArray(2, 8, dtype), "v": StateArray(2, 4, dtype)}, block_tokens=block),
        StateGroup("sliding", (1,), {"k": StateArray(1, 8, dtype), "v": StateArray(1, 8, dtype)}, window=5, block_tokens=block),
    ]


def _allocate(params: Params, address: Address, rig: Rig) -> None:
    said = rig.platform.capabilities
    for dtype in said.dtypes:
        state = rig.platform.allocate(_groups(dtype, said.block_tokens[0]), [4, 3], slots=2)
        for group, count in ((0, 4), (1, 3)):
            for name, array in rig.platform.read_blocks(state, group, range(count)).items():
                expect(
                    array.dtype == DTYPES[dtype] and not array.astype(np.float64).any(),
                    f"new state {name} of {dtype} is not all zeros in that dtype",
                )
        tokens = rig.platform.fetch(state.last_token)
        expect(
            tokens.tolist() == [0, 0, 0] and tokens.dtype == np.int32,
            f"last_token of two slots begins as {tokens!r}, and must be three zeros in int32",
        )


def _state_groups(params: Params, address: Address, rig: Rig) -> None:
    """Each layer's cell says its group, and a group's blocks are its own."""
    dtype, block = rig.platform.capabilities.dtypes[0], rig.platform.capabilities.block_tokens[0]
    state = rig.platform.allocate(_groups(dtype, block), [4, 3], slots=1)
    expect([state[layer].group for layer in range(3)] == [0, 1, 0], "cells of layers 0, 1 and 2 must say group 0, 1 and 0")
    written = {name: np.ones((1, 1, block, 8), DTYPES[dtype]) for name in ("k", "v")}
    rig.platform.write_blocks(state, 1, [2], written)
    expect(
        not any(array.astype(np.float64).any() for array in rig.platform.read_blocks(state, 0, range(4)).values()),
        "a block of one group shows in another",
    )
    back = rig.platform.read_blocks(state, 1, [1, 2])["k"].astype(np.float64)
    expect(not back[:, :, :block].any() and back[:, :, block:].all(), "a written block stands elsewhere than where it was written")


def _write_step(rig: Rig, slots: Sequence[int], block: int, random: np.random.Generator) -> tuple[Any, Any, Any]:
    """(state of 4 blocks, pending, k): one write_kv of len(slots) tokens to these slots."""
    dtype = rig.platform.capabilities.dtypes[0]
    spec = WriteKV(kv_heads=Dim(2, "kv_heads"), key_dim=8, value_dim=8, dtype=dtype)
    group = StateGroup("full", (0,), {"k": StateArray(2, 8, dtype), "v": StateArray(2, 8, dtype)}, block_tokens=block)
    kernel, state = rig.supporting(spec)[0], rig.platform.allocate([group], [4], slots=1)
    packed, batch, _ = empty(BatchShape(len(slots), 1, 1, (3,), len(slots)))
    batch.groups[0].slots[:] = slots
    k = random.normal(size=(len(slots), 2, 8)).astype(DTYPES[dtype])
    handles = (rig.platform.put(k), rig.platform.put(k))

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        kernel.run(spec, *weights, state[0], batch)
        return batch.positions

    return state, rig.submit(step, handles, state, packed), k


def _null_block(params: Params, address: Address, rig: Rig) -> None:
    """Padding writes to block 0, as often as it likes; every other block keeps its bits."""
    block = rig.platform.capabilities.block_tokens[0]
    state, pending, k = _write_step(rig, [block, 0, 0, 0], block, address.random())
    pending.result()
    found = rig.platform.read_blocks(state, 0, [1, 2, 3])["k"][0]
    expect(found[:, 0].tobytes() == k[0].tobytes(), "the one real token of a padded step was not written where it belongs")
    expect(not found[:, 1:].astype(np.float64).any(), "padding tokens wrote outside null block 0")


def _read_after_submit(params: Params, address: Address, rig: Rig) -> None:
    """Blocks that are read show the steps submitted so far, whether or not anybody waited for them."""
    block = rig.platform.capabilities.block_tokens[0]
    state, _, k = _write_step(rig, [2 * block + place % block for place in range(min(block, 4))], block, address.random())
    found = rig.platform.read_blocks(state, 0, [2])["k"][0, :, : len(k)].transpose(1, 0, 2)
    expect(found.tobytes() == k.tobytes(), "read_blocks does not show what a step submitted before it wrote")


# Steps


def _draw(rig: Rig, state: Any, tokens: Sequence[int]) -> list[Any]:
    """Steps submitted in a row, none waited for: each draws tokens[i] for slot 1, and answers with what slot 1 held before it."""
    vocab = 64
    sample, derive = (rig.supporting(spec)[0] for spec in (Sample(vocab=Dim(vocab, "vocab")), PLAIN["derive"]("")))
    packed, batch, _ = empty(IDLE)
    batch.source[:], batch.sample_slot[:] = 1, 1

    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        before = derive.run(PLAIN["derive"](""), batch, state).tokens
        return before, sample.run(Sample(vocab=Dim(vocab, "vocab")), weights, sampling, batch, state).tokens

    packed = rig.packed(packed)
    compiled = rig.platform.compile(step, packed.shape)
    pending = []
    for token in tokens:
        logits = np.zeros((1, vocab), np.float32)
        logits[0, token] = 9.0
        pending.append(rig.platform.submit(compiled, rig.platform.put(logits), state, packed))
    return pending


def _fresh_slot(rig: Rig) -> Any:
    return rig.platform.allocate(_groups(rig.platform.capabilities.dtypes[0], rig.platform.capabilities.block_tokens[0])[:1], [2], slots=1)


def _handed_on(rig: Rig, tokens: Sequence[int]) -> None:
    found = [tuple(int(part[0]) for part in one.result()) for one in _draw(rig, _fresh_slot(rig), tokens)]
    wanted = list(zip([0, *tokens[:-1]], tokens, strict=True))
    expect(
        found == wanted,
        f"steps submitted in a row gave (token before, token drawn) {found} instead of {wanted}: each must see the one before it",
    )


def _submit_order(params: Params, address: Address, rig: Rig) -> None:
    _handed_on(rig, address.random().integers(1, 64, params.int("steps")).tolist())


def _other_thread(params: Params, address: Address, rig: Rig) -> None:
    """The engine submits from a thread of its own."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _handed_on(rig, [5, 9, 2])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _pending(params: Params, address: Address, rig: Rig) -> None:
    """Results are host arrays in the step's own structure, asked for in any order and as often as one likes."""
    pending = _draw(rig, _fresh_slot(rig), [7, 8, 9])
    for place in (2, 0, 1, 2):
        result = pending[place].result()
        expect(isinstance(result, tuple) and len(result) == 2, f"a step that returns a pair gave {type(result).__name__}")
        expect(
            all(isinstance(part, np.ndarray) and part.dtype == np.int32 for part in result),
            f"results must be NumPy arrays, here of int32; found {[type(part).__name__ for part in result]}",
        )
        expect(
            int(result[1][0]) == 7 + place,
            f"step {place} answers {int(result[1][0])} instead of {7 + place} when results are asked for out of order",
        )


def _two_states(params: Params, address: Address, rig: Rig) -> None:
    first, second = _fresh_slot(rig), _fresh_slot(rig)
    for one in _draw(rig, first, [11, 12]):
        one.result()
    [seen] = _draw(rig, second, [13])
    expect(int(seen.result()[0][0]) == 0, "what one state's steps wrote shows in another state")


def _failed_step(params: Params, address: Address, rig: Rig) -> None:
    """A step that raises is told to whoever asks for it, and to nobody else."""
    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        raise ArithmeticError("planted by the conformance suite")

    packed, _, _ = empty(IDLE)
    try:
        rig.submit(step, (), _fresh_slot(rig), packed).result()
    except Exception as error:
        expect(
            "planted by the conformance suite" in str(error),
            f"the error of a failed step lost its text: {type(error).__name__}: {error}",
        )
    else:
        raise Failed("a step that raised gave a result")
    _handed_on(rig, [4, 6])


def _compile_again(params: Params, address: Address, rig: Rig) -> None:
    """The same step compiled for two shapes, in turn."""
    def step(weights: Any, state: Any, batch: Any, sampling: Any) -> Any:
        return batch.positions

    for tokens in (1, 3, 1, 5):
        packed, batch, _ = empty(BatchShape(tokens, 1, 1, (1,), tokens))
        batch.positions[:] = np.arange(tokens) + 10
        found = rig.submit(step, (), _fresh_slot(rig), packed).result()
        expect(
            np.asarray(found)[:tokens].tolist() == list(range(10, 10 + tokens)),
            f"a step over {tokens} tokens answered {found} for the positions 10 and up",
        )


# The end


def _close(params: Params, address: Address, rig: Rig) -> None:
    """Closing twice is closing once; and another instance goes on."""
    closing = rig.reopen()
    try:
        for _ in range(2):
            closing.close()
    except Exception as error:
        raise Failed(f"close() raised {type(error).__name__} when it was called again: {error}") from None
    _handed_on(rig, [3, 1])


def _two_instances(params: Params, address: Address, rig: Rig) -> None:
    other = rig.reopen()
    try:
        theirs = Rig(other, rig.oracle, rig.reopen)
        mine = _draw(rig, _fresh_slot(rig), [21, 22])
        _handed_on(theirs, [31, 32])
        expect([int(one.result()[1][0]) for one in mine] == [21, 22], "two instances of the platform disturb each other")
    finally:
        other.close()


FAMILIES = [Family(f"contract.{name}", 0, axes, checked(check), feature="contract") for name, check, axes in (
    ("put_fetch", _put_fetch, {"dtype": tuple(DTYPES)}), ("allocate", _allocate, {}), ("state_groups", _state_groups, {}),
    ("null_block", _null_block, {}), ("read_after_submit", _read_after_submit, {}),
    ("submit_order", _submit_order, {"steps": ("2", "9")}), ("other_thread", _other_thread, {}), ("pending", _pending, {}),
    ("two_states", _two_states, {}), ("failed_step", _failed_step, {}), ("compile_again", _compile_again, {}),
    ("close", _close, {}), ("two_instances", _two_instances, {}),
)]
