"""Models that are only a shape: a config, and random weights made on the spot. Nothing is read from disk."""
from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ..core.models import model_class
from ..errors import ConfigError, suggest
from ..model_zoo.base import UNQUANTIZED
from ..ops import Tensor, WeightTable

SHAPES: dict[str, dict[str, Any]] = {
    # meta-llama/Llama-3.2-1B
    "llama-1b": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "dtype": "bfloat16",
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    # meta-llama/Llama-3.1-8B
    "llama-8b": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "dtype": "bfloat16",
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    # Qwen/Qwen2.5-0.5B
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "rope_theta": 1000000.0, "dtype": "bfloat16",
    },
    # Qwen/Qwen3-0.6B
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960, "rope_theta": 1000000.0, "dtype": "bfloat16",
    },
    "tiny": {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": True, "max_position_embeddings": 2048,
        "dtype": "bfloat16",
    },
}
"""Name -> config.json. Sizes are those of the models named above them."""

POOL_VALUES = 33_554_393
"""Most weights are a view of the pool. A prime, so that in those that repeat it no two rows are equal."""
SPREAD = 0.02
"""Standard deviation, the usual one of a fresh model."""


class RandomWeights:
    """A `Source` of seeded random bfloat16: norms are ones, everything else is cut from one pool."""

    def __init__(self, name: str, config: Mapping[str, Any], seed: int = 0) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.precision = UNQUANTIZED
        family = model_class(config["model_type"])
        self.tensors: Mapping[str, Tensor] = family(config, dtype="bfloat16", block_tokens=16).weights.tensors()

    @classmethod
    def named(cls, name: str, seed: int = 0) -> RandomWeights:
        """Raises `ConfigError` for an unknown shape, with the nearest one."""
        if name not in SHAPES:
            raise ConfigError(f"shape {name!r} is unknown. {suggest(name, SHAPES)}")
        return cls(name, SHAPES[name], seed)

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"random {self.seed} {json.dumps(self.config, sort_keys=True)}".encode()).hexdigest()

    def check(self, weights: WeightTable) -> None:
        """Every tensor can be made: the table is the one that the names come from."""

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """The same values for the same name and seed, in the checkpoint's shape; read-only where it is a view."""
        shape = self.tensors[name].shape
        size = prod(shape)
        if len(shape) == 1 and "norm" in name:
            return np.ones(shape, ml_dtypes.bfloat16)
        if size > POOL_VALUES:
            return np.resize(self._pool, shape)
        first = zlib.crc32(name.encode()) % (POOL_VALUES - size + 1)
        return self._pool[first : first + size].reshape(shape)

    @cached_property
    def _pool(self) -> np.ndarray[Any, Any]:
        drawn = np.random.default_rng(self.seed).standard_normal(POOL_VALUES, np.float32)
        drawn *= SPREAD
        pool = drawn.astype(ml_dtypes.bfloat16)
        pool.setflags(write=False)
        return pool
