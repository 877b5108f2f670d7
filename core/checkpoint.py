"""A model's folder or .gguf file: its config, its generation defaults, and its tensors, checked before anything is loaded."""
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
from ..ops import FLOATS, Quantized, Scheme, Tensor, WeightTable
from .formats import format_of
from .formats.format import Format, Stored
from .formats.gguf import Gguf, config_of
from .formats.gguf_file import GgufFile
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
    """An opened folder or file. Tensors are memory-mapped: nothing is read until it is asked for."""

    folder: Path
    config: Mapping[str, Any]
    generation: Generation
    files: Mapping[str, SafetensorsFile | GgufFile]
    """tensor name -> the file that holds it."""
    format: Format | None = None
    """How its quantized linears are stored; None: it has none."""

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """A folder, or a .gguf file with what lies beside it.

        Raises `ModelNotFound` without such a path, `CheckpointError` for a damaged or incomplete checkpoint.
        """
        path = Path(path)
        if path.is_file() and path.suffix == ".gguf":
            return cls._open_gguf(path.parent, path)
        if not path.is_dir():
            raise ModelNotFound(f"no folder {path}; give a folder with config.json and *.safetensors, or a .gguf file")
        if single := _single_gguf(path):
            return cls._open_gguf(path, single)
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} has no config.json; found: {_contents(path)}. "
                "Remedy: give the folder that config.json lies in."
            )
        config, files = read_json(path / "config.json"), _files(path)
        return cls(path, config, _generation(path, config), files, format_of(config, files))

    @classmethod
    def _open_gguf(cls, folder: Path, path: Path) -> Checkpoint:
        """config.json beside the file goes before its metadata; what that says of quantization is another file's."""
        file = GgufFile.open(path)
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else config_of(file)
        config.pop("quantization_config", None)
        return cls(folder, config, _generation(folder, config), dict.fromkeys(file.entries, file), Gguf(file))

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def precision(self) -> Precision:
        """How its linears are quantized."""
        return Precision(self._scheme, stored=self.format.text) if self.format else UNQUANTIZED

    def _scheme(self, module: str) -> Scheme | None:
        """A tied head is stored as the embedding is."""
        assert self.format is not None
        tied = module == "lm_head" and self.config.get("tie_word_embeddings")
        return self.format.scheme("model.embed_tokens" if tied else module)

    def tensor(self, name: str) -> np.ndarray[Any, Any] | Quantized:
        """A read-only view in the stored dtype (bfloat16 is ml_dtypes'), or the codes of a quantized weight."""
        if self.format and (module := self.format.module(name)):
            return self.format.weight(module)
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}. Remedy: fetch the checkpoint again.")
        return self.files[name].tensor(name)

    def release(self, name: str) -> None:
        """Its pages leave memory until somebody reads them again; of a quantized one those of all its parts."""
        if name in self.files:
            self.files[name].release(name)
        elif self.format:
            prefix = name.removesuffix("weight")
            for part in [part for part in self.files if part.startswith(prefix)]:
                self.files[part].release(part)

    def check(self, weights: WeightTable) -> None:
        """Raise `CheckpointError` unless every tensor of the table is here in its shape, and no other."""
        needed = {name: stored for tensor in weights.tensors().values() for name, stored in self._stored(tensor).items()}
        missing = [name for name, stored in needed.items() if name not in self.files and not stored.optional]
        extra = [name for name in self.files if name not in needed and not weights.ignores(name) and not self._idle(name)]
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_few(missing)}{_naming(missing, extra)}. Remedy: {_remedy(missing)}.")
        if extra:
            raise CheckpointError(
                f"{self.folder} has {_few(extra)}, for which a {self.model_type!r} model with this config.json has no use. "
                "Remedy: correct config.json (biases, layers, model_type), or fetch the matching checkpoint."
            )
        for name in needed.keys() & self.files.keys():
            _check_entry(name, self.files[name].entries[name], needed[name])
        self._check_tied()

    def check_finite(self) -> None:
        """Raise `CheckpointError` for a NaN or an infinity. Reads every byte of the weights."""
        for name in self.files:
            tensor = self.files[name].tensor(name)
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

    def _stored(self, tensor: Tensor) -> Mapping[str, Stored]:
        """The tensors of the file that a tensor of the model is made of."""
        if self.format and len(tensor.shape) > 1 and (module := self.format.module(tensor.name)):
            return self.format.stored(module, tensor.shape)
        return {tensor.name: Stored((tensor.shape,), FLOATS)}

    def _idle(self, name: str) -> bool:
        return self.format is not None and self.format.idle(name)

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


def _check_entry(name: str, found: Any, stored: Stored) -> None:
    if found.shape not in stored.shapes:
        raise CheckpointError(
            f"{name} has shape {list(found.shape)}, and config.json asks for {' or '.join(str(list(shape)) for shape in stored.shapes)}. "
            "Remedy: use the config.json that belongs to these weights."
        )
    if found.dtype.name not in stored.dtypes:
        raise CheckpointError(f"{name} is stored as {found.dtype.name}. Remedy: use a checkpoint in {', '.join(stored.dtypes)}.")


def _single_gguf(folder: Path) -> Path | None:
    """The .gguf file of a folder without safetensors. Raises `CheckpointError` for several."""
    found = sorted(folder.glob("*.gguf"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = [path.name for path in found]
        raise CheckpointError(f"{folder} has {len(found)} GGUF files: {_few(names)}. Remedy: give one of them (split files are not read).")
    return found[0]


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
