"""Small random models that need no framework and no file, and the platforms that every engine test runs on."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from inferplane import LLM
from inferplane.core.kv.layout import Shape, layout_for_tokens
from inferplane.core.start import ITEMSIZE
from inferplane.ops import StateGroup, WeightTable

VOCAB = 97
CONTEXT = 96
"""Tokens of prompt and answer: six blocks."""
BLOCK = 16
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "full": {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True, **SIZES},
    "sliding": {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 21, **SIZES},
    "full-and-sliding": {
        "model_type": "qwen3", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 21,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], **SIZES,
    },
}


class RandomSource:
    """Weights of any model: each tensor's numbers depend on its name and the seed alone."""

    def __init__(self, config: Mapping[str, Any], seed: int = 0) -> None:
        self.config, self.seed, self.fingerprint = config, seed, f"random-{seed}"
        self.shapes: dict[str, tuple[int, ...]] = {}

    def check(self, weights: WeightTable) -> None:
        self.shapes = {name: tensor.shape for name, tensor in weights.tensors().items()}

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        shape = self.shapes[name]
        center, spread = (1.0, 0.2) if "norm" in name else (0.0, 1.5 * shape[-1] ** -0.5)
        return np.random.default_rng([self.seed, crc32(name.encode())]).normal(center, spread, shape).astype(np.float32)


def random_llm(model: str, platform: str, *, kind: type[Any] = LLM, **settings: Any) -> Any:
    """An engine over a small random model; it takes token ids only. kind: LLM or AsyncEngine."""
    return kind(source=RandomSource(MODELS[model]), platform=platform, **{"dtype": "float32", "max_num_seqs": 8, **settings})


def install(folder: Path, name: str, group: str, entry: str, module: str) -> None:
    """A package as pip leaves it behind, with one entry point: it is found once `folder` is on the path."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (folder / f"{name}.py").write_text(module)


def pool_gb(groups: tuple[StateGroup, ...], *, spare: int, sequences: int, tokens: int, length: int = CONTEXT) -> float:
    """kv_cache_memory_gb for one sequence of `length`, and room for `spare` blocks more of each group."""
    shape = Shape(sequences, length, tokens)
    least = layout_for_tokens(groups, length, shape, ITEMSIZE).memory_bytes
    return (least + spare * sum(group.block_bytes(ITEMSIZE) for group in groups) + 1) / 1e9
