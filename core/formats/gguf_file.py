"""One GGUF file: metadata, and tensors under the names that the rest of the engine knows.

The layout is the one published with ggml (docs/gguf.md, versions 2 and 3, little endian): header, metadata, tensor entries, aligned data.
"""
from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ...errors import CheckpointError
from .. import pages
from ..safetensors_file import Entry

Array = np.ndarray[Any, Any]


class Kind(NamedTuple):
    """How a tensor is stored: so many values in a block of so many bytes. dtype: of a kind that is not quantized."""

    name: str
    values: int
    bytes: int
    dtype: Any = None


KINDS = {
    0: Kind("F32", 1, 4, np.float32), 1: Kind("F16", 1, 2, np.float16), 30: Kind("BF16", 1, 2, ml_dtypes.bfloat16),
    2: Kind("Q4_0", 32, 18), 8: Kind("Q8_0", 32, 34), 14: Kind("Q6_K", 256, 210),
}
OTHERS = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
"""Known by name only, to tell what a file holds."""
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
"""ggml's names of llama, qwen2 and qwen3 -> ours."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
AGAIN = "fetch the file again"


@dataclass(frozen=True)
class GgufFile:
    """Like a `SafetensorsFile`: a quantized tensor is [rows, bytes of a row] of uint8."""

    path: Path
    size: int
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    kinds: Mapping[str, Kind]
    heads: Mapping[str, int]
    """Tensors whose rows were reordered for ggml's rotary embedding, and their heads."""
    data: np.ndarray[Any, np.dtype[np.uint8]]
    mapping: mmap.mmap | None
    """None: the file is empty."""

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Raises `CheckpointError` for a damaged file, or one that holds something which is not read here."""
        size = path.stat().st_size
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        try:
            metadata, infos, start = _Reader(path, memoryview(mapping or b"")).header()
        except (struct.error, UnicodeDecodeError, IndexError):
            raise _error(path, f"ends within its header, or is damaged there ({size} bytes)", AGAIN) from None
        _refuse_kinds(path, infos)
        entries, kinds = {}, {}
        for name, shape, kind, offset in infos:
            known, at = KINDS[kind], start + offset
            if shape[-1] % known.values:
                raise _error(path, f"is damaged: {name} has rows of {shape[-1]} in {known.name}", AGAIN)
            length = prod(shape) // known.values * known.bytes
            if at + length > size:
                raise _error(path, f"is truncated: {at + length - size} bytes are missing of {name}", AGAIN)
            ours = _our_name(name)
            stored = shape if known.dtype else (*shape[:-1], shape[-1] // known.values * known.bytes)
            entries[ours] = Entry(stored, np.dtype(known.dtype or np.uint8), at, at + length)
            kinds[ours] = known
        return cls(path, size, metadata, entries, kinds, _reordered(metadata, entries), np.frombuffer(mapping or b"", np.uint8), mapping)

    def bytes_of(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        entry = self.entries[name]
        return self.data[entry.start : entry.stop]

    def tensor(self, name: str) -> Array:
        """A read-only view, or a copy with its rows in the order of the original checkpoint."""
        entry = self.entries[name]
        stored = np.require(self.bytes_of(name).view(np.ndarray).view(entry.dtype).reshape(entry.shape), requirements="A")
        if name not in self.heads:
            return stored
        halves = stored.reshape(self.heads[name], -1, 2, *entry.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Drop the tensor's pages from memory. A view of it stays sound."""
        if self.mapping is not None:
            pages.release(self.mapping, self.entries[name].start, self.entries[name].stop)


def _reordered(metadata: Mapping[str, Any], names: Mapping[str, Entry]) -> dict[str, int]:
    """llama's queries and keys have the two halves of a head interleaved; the qwens' have not."""
    if metadata.get("general.architecture") != "llama":
        return {}
    heads = metadata.get("llama.attention.head_count", 1)
    kv_heads = metadata.get("llama.attention.head_count_kv", heads)
    return {name: heads if ".q_proj." in name else kv_heads for name in names if ".q_proj." in name or ".k_proj." in name}


def _our_name(name: str) -> str:
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in NAMES:
        return f"model.layers.{layer[1]}.{NAMES[layer[2]]}.{layer[3]}"
    module, _, what = name.rpartition(".")
    return f"{NAMES[module]}.{what}" if module in NAMES else name


def _refuse_kinds(path: Path, infos: list[tuple[str, tuple[int, ...], int, int]]) -> None:
    found: dict[str, list[str]] = {}
    for name, _, kind, _ in infos:
        if kind not in KINDS:
            found.setdefault(OTHERS.get(kind, f"type {kind}"), []).append(name)
    if found:
        told = "; ".join(f"{kind}: {len(names)} tensors, such as {names[0]}" for kind, names in found.items())
        known = ", ".join(kind.name for kind in KINDS.values())
        raise _error(path, f"holds what is not read here ({told}); read are {known}",
                     "take the file in Q8_0 or Q4_0, or quantize the original: --quantization int8 or int4")


class _Reader:
    """A position in the bytes of the header."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
        """Metadata; (name, shape, kind, offset) of each tensor, rows first; where the data starts."""
        if bytes(self.data[:4]) != b"GGUF":
            raise _error(self.path, "is no GGUF file", AGAIN)
        self.at = 4
        version, tensors, pairs = self._numbers("IQQ")
        if version not in (2, 3):
            raise _error(self.path, f"is GGUF of version {version}, and 2 and 3 are read (little endian)", "convert it again")
        metadata = {self._text(): self._value(self._numbers("I")[0]) for _ in range(pairs)}
        infos = [self._info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _error(self.path, f"is damaged: general.alignment is {alignment!r}", AGAIN)
        return metadata, infos, self.at + -self.at % alignment

    def _numbers(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self.data, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return found

    def _text(self) -> str:
        length = self._numbers("Q")[0]
        if self.at + length > len(self.data):
            raise struct.error
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            if kind not in SCALARS:
                raise _error(self.path, f"is damaged: metadata of type {kind}", AGAIN)
            return self._numbers(SCALARS[kind])[0]
        inner, count = self._numbers("IQ")
        if inner in SCALARS:
            if count * struct.calcsize(SCALARS[inner]) > len(self.data) - self.at:
                raise struct.error
            return list(self._numbers(f"{count}{SCALARS[inner]}"))
        return [self._value(inner) for _ in range(count)]

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._numbers("I")[0]
        if not 1 <= dimensions <= 4:
            raise _error(self.path, f"is damaged: {name} has {dimensions} dimensions", AGAIN)
        shape = self._numbers("Q" * dimensions)[::-1]
        kind, offset = self._numbers("IQ")
        return name, shape, kind, offset


def _error(path: Path, found: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} {found}. Remedy: {remedy}.")
