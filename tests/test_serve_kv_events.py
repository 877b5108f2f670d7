"""KV events: what a router learns over ZeroMQ of the prefixes that a server holds."""
from __future__ import annotations

import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine
from inferplane.errors import ConfigError

zmq = pytest.importorskip("zmq")
msgspec = pytest.importorskip("msgspec")
PROMPT = {"prompt": "The code for amber is 7314. " * 12, "max_tokens": 1}
PATIENCE_SECONDS = 30.0


class Router:
    """Subscribes to one topic, and keeps what is cached by the events alone: hash -> (parent, tokens)."""

    def __init__(self, endpoint: str, topic: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self.socket.connect(endpoint)
        self.numbers: list[int] = []
        self.blocks: dict[int, tuple[int | None, list[int]]] = {}
        self.removed = self.cleared = 0

    def take(self, timeout_seconds: float) -> bool:
        if not self.socket.poll(timeout_seconds * 1000):
            return False
        _, number, payload = self.socket.recv_multipart()
        self.numbers.append(int.from_bytes(number, "big"))
        _, events, _ = msgspec.msgpack.decode(payload)
        for event in events:
            self._apply(event)
        return True

    def _apply(self, event: dict[str, Any]) -> None:
        if event["type"] == "BlockStored":
            parent, size = event["parent_block_hash"], event["block_size"]
            assert len(event["token_ids"]) == size * len(event["block_hashes"])
            for place, block in enumerate(event["block_hashes"]):
                self.blocks[block] = (parent, event["token_ids"][place * size:(place + 1) * size])
                parent = block
        elif event["type"] == "BlockRemoved":
            self.removed += 1
            for block in event["block_hashes"]:
                self.blocks.pop(block, None)
        else:
            self.cleared += 1
            self.blocks.clear()

    def until(self, met: Any) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not met() and time.monotonic() < end:
            self.take(0.2)
        assert met(), (self.blocks, self.removed, self.cleared)

    def chains(self) -> list[list[int]]:
        """The tokens from the start of a prompt to each block that is the last of its chain."""
        parents = {parent for parent, _ in self.blocks.values()}
        return [self._tokens(block) for block in self.blocks if block not in parents]

    def _tokens(self, block: int | None) -> list[int]:
        if block is None:
            return []
        parent, tokens = self.blocks[block]
        return self._tokens(parent) + tokens


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    made = AsyncEngine(platform="cpu", kv_cache_memory_gb=0.009)
    yield made
    made.close()


def test_a_router_knows_which_prefixes_are_cached(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, kv_events="inproc://kv-a", kv_events_topic="kv@a")
    router = Router("inproc://kv-a", "kv@")
    ids = app.post("/tokenize", {"prompt": PROMPT["prompt"]}).json()["tokens"]
    while not router.take(0.1):
        app.post("/v1/completions", {"prompt": f"warm {time.monotonic()} " * 12, "max_tokens": 1})
    answer = app.post("/v1/completions", PROMPT).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)
    router.until(lambda: any(chain and chain == ids[:len(chain)] and len(ids) - len(chain) < 32 for chain in router.chains()))
    app.post("/v1/completions", {**PROMPT, "cache_salt": "secret"})
    known = len(router.blocks)
    assert not router.take(0.3) and len(router.blocks) == known, "what has a salt is not told"
    assert router.numbers == list(range(router.numbers[0], router.numbers[0] + len(router.numbers)))
    for place in range(60):
        app.post("/v1/completions", {"prompt": f"{place} other words " * 40, "max_tokens": 1})
    router.until(lambda: router.removed > 0)
    engine.engine.call(engine.engine.scheduler.memory.forget)
    router.until(lambda: router.cleared == 1 and not router.blocks)
    app.service.close()


def test_an_address_that_is_none_is_told_at_the_start(serving: ModuleType, engine: AsyncEngine) -> None:
    with pytest.raises(ConfigError, match=r"tcp://\*:5557"):
        serving.App(engine, kv_events="5557")
    with pytest.raises(ConfigError, match="cannot be sent"):
        serving.App(engine, kv_events="tcp://*:none")
