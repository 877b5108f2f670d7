"""Small random models that need no framework and no file, and the platforms that every engine test runs on."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from inferplane import LLM
from inferplane.conformance.models import CONTEXT, MODELS, SIZES, RandomSource
from inferplane.core.kv.layout import Shape, layout_for_tokens
from inferplane.core.start import ITEMSIZE
from inferplane.ops import StateGroup

VOCAB: int = SIZES["vocab_size"]
__all__ = ["CONTEXT", "MODELS", "VOCAB", "RandomSource", "install", "pool_gb", "random_llm"]


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
