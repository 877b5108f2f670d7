"""Whether a checkpoint gives here what it gives in transformers: float32 logits, and greedy tokens."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..core.checkpoint import Checkpoint
from ..core.loader import LoadOptions, load
from ..core.score import logits
from ..core.tokenizer import Tokenizer
from ..errors import CheckpointError, ConfigError
from ..ops import KernelPack
from ..platforms.contract import Platform

TEXT = "The first engineers who looked after steam engines wrote down everything: pressure, coal, water, and the weather."


@dataclass(frozen=True)
class Verification:
    """What was compared, and how far apart it was."""

    model_type: str
    platform: str
    prompt_tokens: int
    logit_error: float
    """The largest difference between logits, relative to the largest logit."""
    tolerance: float
    steps: int
    equal_steps: int
    """Greedy tokens until the first that differs."""
    margin: float | None = None
    """Where one differs: how far ahead its choice was in transformers, relative to the largest logit. Tiny: a tie."""

    @property
    def passed(self) -> bool:
        return self.logit_error <= self.tolerance and self.equal_steps == self.steps


def verify(
    folder: str | Path,
    platform: Platform,
    packs: Sequence[KernelPack] = (),
    *,
    prompt: Sequence[int] | None = None,
    steps: int = 64,
    tolerance: float = 1e-4,
) -> Verification:
    """Compare one folder on one platform with transformers, in float32 on both sides; both are in memory at once.

    prompt: token ids; default: an English sentence, or random ids where the folder has no tokenizer.
    Ours are computed twice: in one step, for the logits, and token by token, for the greedy choices.
    Raises `ConfigError` without transformers and torch, and whatever loading raises.
    """
    source = Checkpoint.open(folder)
    loaded = load(source, platform, LoadOptions(dtype="float32"), packs)
    prompt = list(prompt) if prompt is not None else _prompt(source.folder, loaded.model.vocab_size)
    if not prompt:
        raise ConfigError("verify needs a prompt of at least one token id; leave it out for a sentence of its own")
    steps = min(steps, loaded.max_model_len - len(prompt))
    if steps < 1:
        raise ConfigError(f"a prompt of {len(prompt)} tokens fills the context of {loaded.max_model_len}; give a shorter one")
    theirs, tokens = _transformers(source.folder, prompt, steps)
    whole = logits(loaded, tokens)
    chosen = logits(loaded, tokens, chunk_tokens=1)[len(prompt) - 1 :].argmax(axis=-1)
    expected = theirs[len(prompt) - 1 :].argmax(axis=-1)
    peak = float(np.abs(theirs).max())
    equal = chosen == expected
    first = steps if equal.all() else int(np.argmin(equal))
    row = theirs[len(prompt) - 1 + first] if first < steps else None
    return Verification(
        model_type=source.model_type, platform=platform.name, prompt_tokens=len(prompt),
        logit_error=float(np.abs(whole - theirs).max()) / peak, tolerance=tolerance, steps=steps, equal_steps=first,
        margin=None if row is None else float(row.max() - row[chosen[first]]) / peak,
    )


def _prompt(folder: Path, vocab: int) -> list[int]:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder).encode(TEXT)
    return [int(token) for token in np.random.default_rng(0).integers(0, vocab, 24)]


def _transformers(folder: Path, prompt: Sequence[int], steps: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Logits [tokens, vocab] after each token, and the tokens: the prompt, then all greedy choices but the last."""
    torch, transformers = _frameworks()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers cannot load {folder}: {error}. "
            "Remedy: verify a checkpoint that it can load."
        ) from error
    tokens, rows = list(prompt), []
    with torch.no_grad():
        out = model(torch.tensor([tokens]), use_cache=True)
        rows.append(out.logits[0])
        for _ in range(steps - 1):
            tokens.append(int(rows[-1][-1].argmax()))
            out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0])
    return np.concatenate([row.numpy() for row in rows]), tokens


def _frameworks() -> tuple[Any, Any]:
    """The oracle's own, imported only here."""
    try:
        return import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"verify compares with transformers, and {error.name} is not installed. "
            "Remedy: pip install 'inferplane[verify]'."
        ) from error
