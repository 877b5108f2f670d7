"""What a model is: weights, state groups, and three pieces of graph that know neither hardware nor parallelism."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..ops import StateGroup, WeightTable


class Model(ABC):
    """Built from a parsed config.json. Its specs are made here, once.

    `config` is the dict of config.json; `dtype` what it computes in; `block_tokens` the size of a KV block;
    `max_model_len` the longest sequence that will be served (it fixes dynamic rope scaling).
    """

    model_type: ClassVar[str]
    dtype: str
    vocab_size: int
    num_layers: int
    context_tokens: int
    """What the checkpoint was made for (max_position_embeddings, after scaling)."""
    weights: WeightTable
    states: Sequence[StateGroup]

    @abstractmethod
    def __init__(self, config: Mapping[str, Any], *, dtype: str, block_tokens: int, max_model_len: int | None = None) -> None:
        """Raises `CheckpointError` for a config that does not describe this family."""

    @abstractmethod
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        """x [tokens, embed]; `w` is the top scope."""

    @abstractmethod
    def layer(self, i: int, ops: Any, x: Any, w: Any, batch: Any, state: Any) -> Any:
        """x [tokens, embed] after layer i; `w` is the layer's scope, `state` its cell."""

    @abstractmethod
    def head(self, ops: Any, w: Any, rows: Any, batch: Any) -> Any:
        """rows [samples, embed] -> logits [samples, vocab] in float32."""
