"""Pools, the prefix index, the layout, and the account of what was computed."""
from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from inferplane.core.kv.blocks import BlockPool
from inferplane.core.kv.layout import Shape, blocks_needed, blocks_spanned, layout_for_bytes, layout_for_tokens
from inferplane.core.kv.memory import KVMemory
from inferplane.core.kv.prefix import PrefixIndex, sha256
from inferplane.core.kv.salt import Salt
from inferplane.core.kv.stats import Reason
from inferplane.errors import CapacityError
from inferplane.ops.state import StateArray, StateGroup

ARRAYS = {"k": StateArray(2, 8, "bfloat16"), "v": StateArray(2, 8, "bfloat16")}
FULL = StateGroup("full", (0, 1), ARRAYS, block_tokens=4)
WINDOW = StateGroup("window", (2,), ARRAYS, window=6, block_tokens=4)
RECURRENT = StateGroup("recurrent", (3,), ARRAYS, kind="recurrent", block_tokens=1)
ITEMSIZE = {"bfloat16": 2}


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, "<i4")


class Run:
    """One sequence that is admitted, computed and indexed as a whole."""

    def __init__(self, memory: KVMemory, ids: np.ndarray, salt: Salt | None = None, by: str = "r") -> None:
        self.memory, self.ids = memory, ids
        self.chain = memory.chain(salt or Salt())
        self.chain.extend(ids)
        self.hit = memory.match(self.chain, ids)
        lease = memory.admit(self.hit, self.chain, ids, len(ids), by, False)
        assert lease is not None
        self.lease = lease
        self.table = lease.tables
        memory.commit(lease, self.chain, ids)

    def end(self) -> Run:
        self.memory.release(self.lease)
        return self

    @property
    def reasons(self) -> list[tuple[Reason, int, int]]:
        return [(run.reason, run.first, run.blocks) for run in self.lease.computed]


class TestThePool:
    def test_the_null_block_is_never_given(self) -> None:
        pool = BlockPool(5, lambda block: None)
        assert sorted(pool.take(4)) == [1, 2, 3, 4]
        assert pool.available == 0

    def test_a_pool_of_the_null_block_alone_is_refused(self) -> None:
        with pytest.raises(CapacityError, match="found 1 blocks"):
            BlockPool(1, lambda block: None)

    def test_a_shared_block_is_free_when_its_last_holder_lets_go(self) -> None:
        pool = BlockPool(3, lambda block: None)
        (block,) = pool.take(1)
        pool.share(block)
        pool.release([block])
        assert (pool.available, pool.holders(block)) == (1, 1)
        pool.release([block])
        assert pool.available == 2

    def test_the_longest_released_is_evicted_first_and_only_when_nothing_is_free(self) -> None:
        evicted: list[int] = []
        pool = BlockPool(5, evicted.append)
        blocks = pool.take(3)
        for block in blocks:
            pool.index(block)
        pool.release([blocks[1]])
        pool.release([blocks[0], blocks[2]])
        pool.take(1)
        assert evicted == []
        pool.take(2)
        assert evicted == [blocks[1], blocks[0]]

    def test_a_cached_block_that_is_shared_again_is_not_evicted(self) -> None:
        evicted: list[int] = []
        pool = BlockPool(3, evicted.append)
        first, second = pool.take(2)
        for block in (first, second):
            pool.index(block)
        pool.release([first, second])
        pool.share(first)
        assert pool.take(1) == [second]
        assert evicted == [second]


class TestKeys:
    def test_they_are_the_same_in_every_process(self) -> None:
        code = ("from inferplane.core.kv.prefix import PrefixIndex; from inferplane.core.kv.salt import Salt; import struct\n"
                "index = PrefixIndex(2, 1, 9); keys = []; origin = index.origin(Salt('a', 'm', 't'))\n"
                "index.extend(keys, origin, memoryview(struct.pack('<4i', 1, 2, 3, 4))); print(b''.join(keys).hex())")
        seeds = [subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                                check=True, capture_output=True, text=True).stdout.strip() for seed in ("1", "2")]
        first = hashlib.sha256(b"inferplane.prefix.1" + (2).to_bytes(8, "little") + Salt("a", "m", "t").encode()).digest()
        first = hashlib.sha256(first + tokens(1, 2).tobytes()).digest()
        second = hashlib.sha256(first + tokens(3, 4).tobytes()).digest()
        assert seeds == [(first + second).hex()] * 2

    def test_every_part_of_the_salt_and_the_block_size_have_a_domain_of_their_own(self) -> None:
        salts = [Salt(), Salt("x"), Salt("", "x"), Salt("", "", "x"), Salt("x", "x"), Salt("xM"), Salt("x", "", "x"),
                 Salt("A\x01\0\0\0\0\0\0\0x")]
        origins = [PrefixIndex(size, 1, 9).origin(salt) for salt in salts for size in (4, 16)]
        assert len(set(origins)) == len(origins)

    def test_negative_looking_and_large_ids_differ(self) -> None:
        index, keys = PrefixIndex(1, 1, 9), []
        index.extend(keys, b"", tokens(0, 2**31 - 1, 1, 256).data.cast("B"))
        assert len(set(keys)) == 4


class TestCollisions:
    @pytest.mark.parametrize("digest", [lambda data: b"x", lambda data: bytes([len(data) % 3])], ids=["one key", "three keys"])
    def test_prefixes_of_one_key_never_exchange_blocks(self, digest) -> None:
        memory = KVMemory([FULL], [100], digest=digest)
        first = Run(memory, tokens(1, 1, 1, 1, 5, 5, 5, 5, 9)).end()
        for other in (tokens(2, 2, 2, 2, 5, 5, 5, 5, 9), tokens(5, 5, 5, 5, 9), tokens(1, 1, 1, 1, 6, 6, 6, 6, 9)):
            run = Run(memory, other).end()
            hit = run.hit.tokens // 4
            assert run.table[0][:hit].tolist() == first.table[0][:hit].tolist()
            assert run.hit.tokens <= next((i for i in range(len(other)) if other[i] != first.ids[i]), 0)
        salted = Run(memory, first.ids, Salt("x"))
        assert salted.hit.tokens == 0

    def test_the_same_block_after_another_one_is_another_block(self) -> None:
        memory = KVMemory([FULL], [100], digest=lambda data: data[-16:])
        one = Run(memory, tokens(1, 1, 1, 1, 5, 5, 5, 5, 9))
        two = Run(memory, tokens(2, 2, 2, 2, 5, 5, 5, 5, 9))
        assert two.hit.tokens == 0
        assert not set(one.table[0].tolist()) & set(two.table[0].tolist())


class TestWindows:
    def test_blocks_wholly_behind_the_window_are_freed_and_no_earlier(self) -> None:
        memory = KVMemory([WINDOW], [100])
        ids = tokens(*range(4))
        run = Run(memory, ids)
        for start in range(4, 40):
            assert memory.extend(run.lease, start, start + 1, "r") == start + 1
            first_seen = max(0, start - 6 + 1)
            expected = [block >= first_seen // 4 for block in range(start // 4 + 1)]
            assert (run.lease.tables[0] != 0).tolist() == expected
        assert memory.stats().held_blocks[0] == len([held for held in expected if held])

    def test_a_hit_needs_only_the_last_window(self) -> None:
        memory = KVMemory([WINDOW], [7])
        ids = tokens(*range(17))
        run = Run(memory, ids)
        memory.extend(run.lease, 16, 17, "r")
        memory.release(run.lease)
        Run(memory, tokens(90, 91, 92, 93), by="other").end()
        Run(memory, tokens(*range(80, 89)), by="other").end()
        again = Run(memory, ids)
        assert again.hit.tokens == 16
        assert (again.table[0] != 0).tolist() == [False, False, True, True, True]

    def test_a_prefix_counts_up_to_the_shortest_hit_of_the_groups(self) -> None:
        memory = KVMemory([FULL, WINDOW], [100, 8])
        ids = tokens(*range(21))
        Run(memory, ids).end()
        Run(memory, tokens(*range(50, 70)), by="other").end()
        assert Run(memory, ids).end().hit.tokens == 20
        Run(memory, tokens(*range(90, 118)), by="other").end()
        hit = Run(memory, ids).hit
        assert [bool(node.blocks[0]) for node in hit.paths[0][1:]] == [True] * 5
        assert hit.tokens == 0

    def test_the_hit_is_what_a_check_of_every_length_finds(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            memory = KVMemory([FULL, WINDOW], [60, 60])
            ids = tokens(*range(33))
            run = Run(memory, ids).end()
            path = memory.match(run.chain, ids).paths[0]
            for column in (0, 1):
                for block in np.flatnonzero(rng.random(8) < 0.2):
                    path[block + 1].blocks[column] = 0
            def works(length: int, path=path) -> bool:
                behind = max(0, length - 6 + 1) // 4
                return all(path[b + 1].blocks[0] for b in range(length // 4)) and all(
                    path[b + 1].blocks[1] for b in range(behind, length // 4))
            expected = max(length for length in range(0, 33, 4) if works(length))
            assert memory.match(run.chain, ids).tokens == expected

    @pytest.mark.parametrize("window", [1, 2, 4, 5, 16, 17])
    def test_no_position_in_a_window_is_beyond_the_blocks_counted_for_it(self, window: int) -> None:
        group = StateGroup("window", (0,), ARRAYS, window=window, block_tokens=4)
        most = max(len({p // 4 for p in range(max(0, q - window + 1), q + 1)}) for q in range(200))
        assert blocks_needed(group, 200) == blocks_spanned(window, 4) == most


class TestTheAccount:
    def test_a_new_prompt_was_never_seen(self) -> None:
        run = Run(KVMemory([FULL], [100]), tokens(*range(10)))
        assert run.reasons == [(Reason.NEVER_SEEN, 0, 2), (Reason.PARTIAL, 2, 1)]

    def test_a_prompt_that_leaves_a_known_one_says_where(self) -> None:
        memory = KVMemory([FULL], [100])
        Run(memory, tokens(*range(16))).end()
        run = Run(memory, tokens(0, 1, 2, 3, 4, 5, 99, 7, 8, 9, 10, 11))
        assert run.reasons == [(Reason.DIVERGED, 1, 2)]
        assert run.lease.computed[0].token == 6

    def test_a_prompt_that_goes_on_from_a_known_one_was_never_seen(self) -> None:
        memory = KVMemory([FULL], [100])
        Run(memory, tokens(*range(8))).end()
        assert Run(memory, tokens(*range(16))).reasons == [(Reason.NEVER_SEEN, 2, 2)]

    def test_another_salt_is_named_and_so_is_coming_back(self) -> None:
        memory = KVMemory([FULL], [100])
        Run(memory, tokens(*range(8)), Salt("x")).end()
        assert Run(memory, tokens(*range(8)), Salt("y")).reasons == [(Reason.SALT_DIFFERS, 0, 2)]
        assert Run(memory, tokens(*range(8))).reasons == [(Reason.SALT_DIFFERS, 0, 2)]

    def test_an_eviction_is_told_with_its_plan_its_time_and_its_cause(self) -> None:
        memory = KVMemory([FULL], [4])
        Run(memory, tokens(*range(12))).end()
        memory.begin(7, 2.5)
        Run(memory, tokens(*range(50, 62)), by="thief").end()
        run = Run(memory, tokens(*range(12)))
        assert run.reasons == [(Reason.EVICTED, 0, 3)]
        eviction = run.lease.computed[0].eviction
        assert eviction is not None
        assert (eviction.group, eviction.number, eviction.now, eviction.by) == ("full", 7, 2.5, "thief")
        assert memory.stats().evicted_blocks == 6

    def test_the_totals_are_the_sum_of_the_requests(self) -> None:
        memory = KVMemory([FULL], [100])
        runs = [Run(memory, ids) for ids in (tokens(*range(9)), tokens(*range(8)), tokens(*range(5)), tokens(7, 7))]
        stats = memory.stats()
        for reason in Reason:
            assert stats.computed_blocks[reason] == sum(blocks for run in runs for why, _, blocks in run.reasons if why is reason)
        assert (stats.hit_tokens, stats.prompt_tokens) == (4 + 4, 24)

    def test_what_is_remembered_of_the_gone_is_bounded(self) -> None:
        memory = KVMemory([FULL], [4])
        for i in range(3000):
            Run(memory, tokens(i, i, i, i, 0)).end()
        index = memory.indexes[0]
        assert len(index) <= 8
        assert len(index._ghosts) <= index._remembered
        assert len(index._seen) <= index._remembered


class TestTheLayout:
    SHAPE = Shape(sequences=4, length_tokens=64, step_tokens=16)

    def test_it_fills_the_budget_and_never_exceeds_it(self) -> None:
        groups = [FULL, WINDOW, RECURRENT]
        for budget in (20_000, 100_000, 1_000_000):
            layout = layout_for_bytes(groups, budget, self.SHAPE, ITEMSIZE)
            block_bytes = 4 * 2 * 2 * 8 * 2
            state_bytes = 5 * 2 * 2 * 8 * 2
            assert layout.memory_bytes == (2 * layout.blocks[0] + layout.blocks[1]) * block_bytes + state_bytes <= budget
            assert budget - layout.memory_bytes <= 3 * block_bytes
            assert layout.blocks[2] == 0

    def test_a_window_gets_less_than_the_full_group(self) -> None:
        layout = layout_for_tokens([FULL, WINDOW], 640, self.SHAPE, ITEMSIZE)
        assert layout.blocks == (1 + 10 * 16, 1 + 10 * blocks_needed(WINDOW, 64, 16))
        assert layout.capacity_tokens == 640

    def test_one_full_sequence_fits_in_the_smallest(self) -> None:
        layout = layout_for_tokens([FULL, WINDOW], 1, self.SHAPE, ITEMSIZE)
        assert layout.blocks[0] == 17

    def test_a_budget_for_less_than_one_sequence_is_refused(self) -> None:
        with pytest.raises(CapacityError, match=r"may use 1000 bytes, and one sequence of 64 tokens .* needs \d+"):
            layout_for_bytes([FULL], 1000, self.SHAPE, ITEMSIZE)


def test_the_default_digest_is_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").digest()
