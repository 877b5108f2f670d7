"""A shape's random weights as a checkpoint folder that other engines load: config.json, safetensors, and a stub tokenizer."""
from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from ...errors import ConfigError
from ..shapes import RandomWeights

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
FIRST_IDS = 16
"""The stub tokenizer knows this many words: prompts are ids, so it only has to be there."""


def make_model(shape: str, folder: Path, seed: int = 0) -> Path:
    """The same shape and seed give the same bytes, which are left alone where they are already there."""
    if (folder / "config.json").is_file():
        return folder
    source = RandomWeights.named(shape, seed)
    family = source.config["model_type"]
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"shape {shape!r} is of the family {family!r}, which no checkpoint can be made of; known: {known}.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: source.tensor(name) for name in source.tensors}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write_tokenizer(folder)
    config = {
        **source.config, "architectures": [ARCHITECTURES[family]], "torch_dtype": "bfloat16", "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def _write_tokenizer(folder: Path) -> None:
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, FIRST_IDS)}
    Tokenizer(WordLevel(words, unk_token="<s>")).save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
