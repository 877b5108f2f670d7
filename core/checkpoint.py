"""A model's folder: its config, its generation defaults, and its tensors, checked before anything is loaded."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ModelNotFound
from ..model_zoo.base import UNQUANTIZED, Precision
from ..ops import FLOATS, WeightTable
from .safetensors_file import SafetensorsFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""What generation_config.json may say about drawing; the names are those of `SamplingParams`."""
SAMPLES, SAMPLE_BYTES = 16, 64
"""What the fingerprint reads of each tensor."""


@dataclass(frozen=True)
class Generation:
    """The checkpoint's own defaults: ids that end a text, and sampling parameters where it is meant to be sampled."""

    end_tokens: tuple[int, ...]
    sampling: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. Tensors are memory-mapped: nothing is read until it is asked for."""

    folder: Path
    config: Mapping[str, Any]
    generation: Generation
    files: Mapping[str, SafetensorsFile]
    """tensor name -> the file that holds it."""

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Raises `ModelNotFound` without such a folder, `CheckpointError` for a damaged or incomplete one."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelNotFound(f"no folder {folder}; give a folder with config.json and *.safetensors")
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has no config.json; found: {_contents(folder)}. "
                "Remedy: give the folder that config.json lies in."
            )
        config = read_json(folder / "config.json")
        return cls(folder, config, _generation(folder, config), _files(folder))

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def precision(self) -> Precision:
        """How its linears are quantized."""
        return UNQUANTIZED

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """A read-only view in the stored dtype (bfloat16 is ml_dtypes')."""
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}. Remedy: fetch the checkpoint again.")
        return self.files[name].tensor(name)

    def release(self, name: str) -> None:
        """Its pages leave memory until somebody reads them again."""
        self.files[name].release(name)

    def check(self, weights: WeightTable) -> None:
        """Raise `CheckpointError` unless every tensor of the table is here in its shape, and no other."""
        needed = weights.tensors()
        missing = [name for name in needed if name not in self.files]
        extra = [name for name in self.files if name not in needed and not name.endswith(weights.ignored)]
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_few(missing)}{_naming(missing, extra)}. Remedy: {_remedy(missing)}.")
        if extra:
            raise CheckpointError(
                f"{self.folder} has {_few(extra)}, for which a {self.model_type!r} model with this config.json has no use. "
                "Remedy: correct config.json (biases, layers, model_type), or fetch the matching checkpoint."
            )
        for name, tensor in needed.items():
            entry = self.files[name].entries[name]
            if entry.shape != tensor.shape:
                raise CheckpointError(
                    f"{name} has shape {list(entry.shape)}, and config.json asks for {list(tensor.shape)}. "
                    "Remedy: use the config.json that belongs to these weights."
                )
            if entry.dtype.name not in FLOATS:
                raise CheckpointError(f"{name} is stored as {entry.dtype.name}. Remedy: use a checkpoint in {', '.join(FLOATS)}.")
        self._check_tied()

    def check_finite(self) -> None:
        """Raise `CheckpointError` for a NaN or an infinity. Reads every byte of the weights."""
        for name in self.files:
            tensor = self.tensor(name)
            wrong = 0 if tensor.dtype.name not in FLOATS else tensor.size - int(np.isfinite(tensor).sum())
            if wrong:
                raise CheckpointError(f"{name} has {wrong} values that are NaN or infinite. Remedy: fetch the checkpoint again.")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config, file sizes, and each tensor's name, shape, dtype and a sample of its bytes."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path, size in sorted({(file.path.name, file.size) for file in self.files.values()}):
            digest.update(f"{path} {size}\n".encode())
        for name in sorted(self.files):
            entry, data = self.files[name].entries[name], self.files[name].bytes_of(name)
            digest.update(f"{name} {entry.shape} {entry.dtype.name}\n".encode())
            for start in np.linspace(0, max(0, data.size - SAMPLE_BYTES), SAMPLES, dtype=np.int64):
                digest.update(data[start : start + SAMPLE_BYTES].tobytes())
            self.release(name)
        return digest.hexdigest()

    def _check_tied(self) -> None:
        """Old checkpoints may store a tied head twice; one that differs from the embedding is not tied at all."""
        pair = ("model.embed_tokens.weight", "lm_head.weight")
        if self.config.get("tie_word_embeddings") and all(name in self.files for name in pair):
            embedding, head = (self.files[name].bytes_of(name) for name in pair)
            if not np.array_equal(embedding, head):
                raise CheckpointError(
                    f"{self.folder}: config.json says tie_word_embeddings, and {pair[1]} differs from {pair[0]}. "
                    "Remedy: set tie_word_embeddings to false."
                )


def read_json(path: Path) -> dict[str, Any]:
    """Raises `CheckpointError` for anything but a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}. Remedy: fetch the file again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}, and must hold an object. "
            "Remedy: fetch the file again."
        )
    return value


def _files(folder: Path) -> dict[str, SafetensorsFile]:
    if (folder / SINGLE).is_file():
        file = SafetensorsFile.open(folder / SINGLE)
        return dict.fromkeys(file.entries, file)
    if not (folder / INDEX).is_file():
        convert = "fetch the checkpoint again"
        if any(path.suffix in (".bin", ".pt", ".pth") for path in folder.iterdir()):
            convert = "only safetensors are read: load it with transformers and save_pretrained"
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; found: {_contents(folder)}. Remedy: {convert}.")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) and Path(place).name == place for place in places.values()):
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map from tensors to files beside it. "
            "Remedy: fetch the file again."
        )
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of {len(shards)} shards: {_few(absent)}. "
            "Remedy: fetch the missing files."
        )
    opened = {shard: SafetensorsFile.open(folder / shard) for shard in shards}
    lost = [name for name, shard in places.items() if name not in opened[shard].entries]
    if lost:
        raise CheckpointError(
            f"{folder / INDEX} promises {_few(lost)}, which the shards do not hold. "
            "Remedy: fetch the checkpoint again."
        )
    return {name: opened[shard] for name, shard in places.items()}


def _generation(folder: Path, config: Mapping[str, Any]) -> Generation:
    path = folder / "generation_config.json"
    said = read_json(path) if path.is_file() else {}
    ends = said.get("eos_token_id", config.get("eos_token_id"))
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(type(token) is not int or token < 0 for token in ends):
        raise CheckpointError(
            f"{folder}: eos_token_id is {ends!r}, and must be a token id or a list of them. "
            "Remedy: correct it."
        )
    names = (*SAMPLING, "repetition_penalty") if said.get("do_sample") else ("repetition_penalty",)
    sampling = {name: said[name] for name in names if said.get(name) is not None}
    for name, value in sampling.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{path}: {name} is {value!r}, and must be a number. Remedy: correct it.")
    return Generation(tuple(dict.fromkeys(ends)), sampling)


def _contents(folder: Path) -> str:
    return _few(sorted(path.name for path in folder.iterdir())) or "nothing"


def _few(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _naming(missing: Sequence[str], extra: Sequence[str]) -> str:
    return f" (and has {_few(extra)} instead)" if extra else ""


def _remedy(missing: Sequence[str]) -> str:
    if list(missing) == ["lm_head.weight"]:
        return "set tie_word_embeddings to true in config.json if the head is the embedding; otherwise fetch the checkpoint again"
    return "fetch the checkpoint again, or correct config.json (layers, biases, model_type)"
