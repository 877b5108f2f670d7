"""Exchange: blocks in their canonical form, so that one platform can prefill and another decode.

magic, version, header length | header: the manifest as JSON | each array's bytes, C order, little-endian | SHA-256 of all before
"""
from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ...errors import ExchangeError
from ...ops.state import StateGroup

MAGIC = b"INFERPKV"
VERSION = 1
PREFIX = struct.Struct("<8sIQ")
DIGEST_BYTES = 32
DTYPES: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("float64", "float32", "float16", "int8", "uint8")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in (
        "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")},
}


@dataclass(frozen=True)
class ArrayForm:
    """One array's name, dtype, and shape [layers, kv_heads, tokens, dim]."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What the arrays mean.

    model: the fingerprint of weights and config. tokens, positions [tokens]: what was computed, and where it stood.
    rope: the keys are rotated already. salt: `Salt.digest()` of adapter, media and tenant. block_tokens: of the exporter.
    scales: for an array of codes, the name of the array with its scales, which broadcasts against it; None: nothing is quantized.
    arrays: filled in by `pack`. parent: a digest of the salt and all tokens before positions[0], which the arrays depend on too.
    """

    model: str
    group: str
    block_tokens: int
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    rope: bool
    salt: str
    adapter: str = ""
    scales: Mapping[str, str] | None = None
    arrays: tuple[ArrayForm, ...] = ()
    parent: str = ""
    version: int = VERSION

    @property
    def stretch(self) -> range:
        """From the first position to the last."""
        first = self.positions[0] if self.positions else 0
        return range(first, first + len(self.positions))


def pack(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> bytes:
    """One group's blocks as bytes. arrays: name -> [layers, kv_heads, tokens, dim]. Raises ExchangeError."""
    forms = tuple(ArrayForm(name, array.dtype.name, tuple(array.shape)) for name, array in arrays.items())
    manifest = replace(manifest, arrays=forms)
    _check_manifest(manifest)
    header = json.dumps(asdict(manifest), sort_keys=True, separators=(",", ":")).encode()
    parts = [PREFIX.pack(MAGIC, VERSION, len(header)), header]
    parts += [np.ascontiguousarray(array.astype(DTYPES[array.dtype.name], copy=False)).tobytes() for array in arrays.values()]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes, *, model: str, group: StateGroup, salt: str) -> tuple[Manifest, dict[str, np.ndarray]]:
    """The manifest and the arrays, read-only views of `data`.

    Raises ExchangeError unless every byte is as packed, and they are this model's, this group's and of this salt.
    """
    header, payload = _open(data)
    manifest = _read_manifest(header)
    _check_manifest(manifest)
    _check_expected(manifest, model, group, salt)
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for form in manifest.arrays:
        dtype = DTYPES[form.dtype]
        count = prod(form.shape)
        end = offset + count * dtype.itemsize
        if end > len(payload):
            raise ExchangeError(f"array {form.name!r} of {list(form.shape)} {form.dtype} ends at byte {end}; there are "
                                f"{len(payload)}. Export the blocks again.")
        arrays[form.name] = np.frombuffer(payload[offset:end], dtype).reshape(form.shape)
        offset = end
    if offset != len(payload):
        raise ExchangeError(f"the arrays are {offset} bytes, and {len(payload)} were sent. Export the blocks again.")
    return manifest, arrays


def _open(data: bytes) -> tuple[bytes, memoryview]:
    """The header and the arrays' bytes, once the checksum has proved them."""
    if len(data) < PREFIX.size + DIGEST_BYTES:
        raise ExchangeError(f"canonical blocks have {PREFIX.size + DIGEST_BYTES} bytes at least; found {len(data)}. Send all.")
    magic, version, header_bytes = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ExchangeError(f"canonical blocks start with {MAGIC!r}; found {magic!r}. Check what was sent.")
    if version != VERSION:
        raise ExchangeError(f"canonical blocks of version {version} are unknown; this release reads {VERSION}. "
                            "Run the same release on both sides.")
    view = memoryview(data)
    body, digest = view[:-DIGEST_BYTES], bytes(view[-DIGEST_BYTES:])
    found = hashlib.sha256(body).digest()
    if found != digest:
        raise ExchangeError(f"the checksum of the blocks is {found.hex()[:16]}..., and {digest.hex()[:16]}... was promised: "
                            "bytes were changed or lost. Send them again.")
    if PREFIX.size + header_bytes > len(body):
        raise ExchangeError(f"the header says {header_bytes} bytes; found {len(body) - PREFIX.size}. Export the blocks again.")
    return bytes(body[PREFIX.size:PREFIX.size + header_bytes]), body[PREFIX.size + header_bytes:]


def _read_manifest(header: bytes) -> Manifest:
    try:
        values = json.loads(header)
        unknown = set(values) ^ {field.name for field in fields(Manifest)}
        if unknown:
            raise ExchangeError(f"the manifest lacks or adds {sorted(unknown)}. Run the same release on both sides.")
        forms = tuple(ArrayForm(form["name"], form["dtype"], tuple(form["shape"])) for form in values.pop("arrays"))
        return Manifest(**{**values, "tokens": tuple(values["tokens"]), "positions": tuple(values["positions"]), "arrays": forms})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExchangeError(f"the manifest cannot be read: {error}. Export the blocks again.") from error


def _check_manifest(manifest: Manifest) -> None:
    """What holds for any manifest."""
    if len(manifest.tokens) != len(manifest.positions):
        raise ExchangeError(f"{len(manifest.tokens)} tokens need as many positions; found {len(manifest.positions)}. "
                            "Give one each.")
    if manifest.positions != tuple(manifest.stretch):
        raise ExchangeError(f"positions must follow one another; found {list(manifest.positions[:8])}. Send one stretch.")
    names = [form.name for form in manifest.arrays]
    if len(set(names)) != len(names) or not names:
        raise ExchangeError(f"a manifest names each of at least one array once; found {names}. Name them apart.")
    lone = [name for pair in (manifest.scales or {}).items() for name in pair if name not in names]
    if lone:
        raise ExchangeError(f"the scales name {lone}, which are not among the arrays {names}. Send them along.")
    for form in manifest.arrays:
        if form.dtype not in DTYPES:
            raise ExchangeError(f"array {form.name!r} is {form.dtype}, which does not travel. Known: {', '.join(DTYPES)}.")
        if len(form.shape) != 4 or not all(isinstance(size, int) and size >= 0 for size in form.shape):
            raise ExchangeError(f"array {form.name!r} must be [layers, kv_heads, tokens, dim]; found {list(form.shape)}. "
                                "Transpose it.")
        if form.shape[2] != len(manifest.tokens):
            raise ExchangeError(f"array {form.name!r} holds {form.shape[2]} tokens; the manifest lists {len(manifest.tokens)}. "
                                "Cut the array or the list.")


def _check_expected(manifest: Manifest, model: str, group: StateGroup, salt: str) -> None:
    """Whether they are the blocks that the importer can use."""
    for what, found, ours in (("model", manifest.model, model), ("state group", manifest.group, group.name),
                              ("salt", manifest.salt, salt)):
        if found != ours:
            raise ExchangeError(f"the blocks are of {what} {found!r}; this side has {ours!r}. Import them where they fit.")
    forms = {form.name: form for form in manifest.arrays}
    if set(forms) != set(group.arrays):
        raise ExchangeError(f"group {group.name!r} has arrays {sorted(group.arrays)}; found {sorted(forms)}. "
                            "Export them with the same model code.")
    for name, array in group.arrays.items():
        wanted = ArrayForm(name, array.dtype, (len(group.layers), array.heads, len(manifest.tokens), array.dim))
        if forms[name] != wanted:
            raise ExchangeError(f"array {name!r} is {list(wanted.shape)} {wanted.dtype} here; found {list(forms[name].shape)} "
                                f"{forms[name].dtype}. Use the same model and state dtype on both sides.")
