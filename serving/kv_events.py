"""KV events over ZeroMQ in vLLM's format: which blocks of prefixes this server holds, for routers that know caches.

Messages of three parts: topic, sequence number (8 bytes, big-endian), msgpack [unix seconds, events, rank]; an event is a map with
its `type`, as since vLLM 0.23: https://docs.vllm.ai/en/latest/api/vllm/distributed/kv_events
"""
from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np

from ..errors import ConfigError

MOST_EVENTS = 4096
"""In one message."""
MEDIUM = "GPU"
"""vLLM's word for the accelerator's own memory."""
RANK = 0
CLOSE_SECONDS = 2.0


class KVEvents:
    """A `KVListener`. endpoint: with * it is listened on (tcp://*:5557), otherwise connected to. topic: what subscribers filter by."""

    def __init__(self, endpoint: str, topic: str) -> None:
        try:
            import msgspec
            import zmq
        except ImportError as error:
            raise ConfigError(f"KV events need the package {error.name!r}. Install it: pip install 'inferplane[kv-events]'") from None
        self._topic, self._encode = topic.encode(), msgspec.msgpack.encode
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._socket: Any = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            listens = "*" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
            (self._socket.bind if listens else self._socket.connect)(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(f"KV events cannot be sent at {endpoint!r}: {error}. Choose another address, for instance tcp://*:5557.") \
                from None
        self._thread = threading.Thread(target=self._send_all, name="inferplane-kv-events", daemon=True)
        self._thread.start()

    def stored(self, key: bytes, parent: bytes | None, tokens: bytes, block_tokens: int) -> None:
        self._events.put({
            "type": "BlockStored", "block_hashes": [_hash(key)], "parent_block_hash": None if parent is None else _hash(parent),
            "token_ids": np.frombuffer(tokens, "<i4").tolist(), "block_size": block_tokens, "lora_id": None, "medium": MEDIUM,
            "lora_name": None,
        })

    def removed(self, key: bytes) -> None:
        self._events.put({"type": "BlockRemoved", "block_hashes": [_hash(key)], "medium": MEDIUM})

    def cleared(self) -> None:
        self._events.put({"type": "AllBlocksCleared"})

    def close(self) -> None:
        """What waits is sent first."""
        self._events.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _send_all(self) -> None:
        number, last = 0, False
        while not last:
            batch, last = self._batch()
            if batch:
                payload = self._encode([time.time(), batch, RANK])
                self._socket.send_multipart((self._topic, number.to_bytes(8, "big"), payload))
                number += 1
        self._socket.close()

    def _batch(self) -> tuple[list[dict[str, Any]], bool]:
        """All events that wait, at least one, and whether they were the last. Blocks that follow each other are one event."""
        made: list[dict[str, Any]] = []
        event = self._events.get()
        while event is not None:
            if made and _follows(made[-1], event):
                made[-1]["block_hashes"] += event["block_hashes"]
                made[-1]["token_ids"] += event["token_ids"]
            else:
                made.append(event)
            if len(made) >= MOST_EVENTS or self._events.empty():
                return made, False
            event = self._events.get()
        return made, True


def _follows(before: dict[str, Any], event: dict[str, Any]) -> bool:
    same = before["type"] == event["type"] == "BlockStored" and before["block_size"] == event["block_size"]
    return same and event["parent_block_hash"] == before["block_hashes"][-1]


def _hash(key: bytes) -> int:
    """As vLLM sends them: the last 64 bits."""
    return int.from_bytes(key[-8:], "big")
