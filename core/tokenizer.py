"""Text to token ids and back, over the `tokenizers` library; token by token through the bytes that each token stands for."""
from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, RequestError
from .checkpoint import read_json

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A checkpoint's tokenizer.json, which alone decides what is added around a text, as in transformers 5."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, end_tokens: Sequence[int] = ()) -> None:
        """end_tokens: ids that end a text, by the tokenizer's own word (the checkpoint may name more)."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.end_tokens = tuple(end_tokens)
        self.special_ids = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Raises `CheckpointError` where tokenizer.json is missing or damaged."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            remedy = "load it with transformers' AutoTokenizer and save_pretrained, which writes one"
            raise CheckpointError(f"{folder} has no tokenizer.json. Remedy: {remedy}; or run on token ids without a tokenizer.")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} cannot be read: {error}. Remedy: fetch the file again.") from None
        end = tokenizer.token_to_id(special_tokens(folder).get("eos_token", ""))
        return cls(tokenizer, [] if end is None else [end])

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included; a model's logits may be padded beyond."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The text of a tokenizer.json."""
        return self._tokenizer.to_str()

    def added_id(self, text: str) -> int | None:
        """The token that was added for exactly this text, special or not."""
        token = self._tokenizer.token_to_id(text)
        return token if token in self._tokenizer.get_added_tokens_decoder() else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises `RequestError` for text that is no Unicode (lone surrogates)."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeError) as error:
            raise RequestError(f"the text cannot be encoded: {error}. Remedy: pass a str of valid Unicode.") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        return Detokenizer(self, skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """What a token contributes to a text that goes on: a character may be spread over several tokens."""
        made = self._bytes.get(token)
        if made is None:
            made = self._bytes[token] = self._spell(token)
        return made

    def _spell(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            known = [BYTE_OF.get(character) for character in piece]
            return piece.encode() if None in known else bytes(known)  # type: ignore[arg-type]
        if self._byte_fallback and (byte := BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        anchor = self._anchor
        before = self._tokenizer.decode(anchor, skip_special_tokens=False)
        return self._tokenizer.decode([*anchor, token], skip_special_tokens=False)[len(before):].encode()

    @cached_property
    def _decoders(self) -> list[str]:
        """The kinds of decoder that run one after the other."""
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        return [str(one.get("type")) for one in decoder.get("decoders", [decoder])]

    @cached_property
    def _byte_level(self) -> bool:
        return self._decoders == ["ByteLevel"]

    @cached_property
    def _byte_fallback(self) -> bool:
        return "ByteFallback" in self._decoders

    @cached_property
    def _anchor(self) -> list[int]:
        """A token to decode others behind, because many decoders strip a leading space."""
        ids = (self._tokenizer.token_to_id(piece) for piece in ("a", "▁a", "▁", "e"))
        usable = (i for i in (*ids, *range(self.vocab_size)) if i is not None and i not in self.special_ids)
        return next(([i] for i in usable if self._tokenizer.decode([i]).isalnum()), [])


class Detokenizer:
    """One request's text as it grows. Bytes wait until their character is whole; damaged ones become U+FFFD.

    The text continues a prompt: a leading space stays, so that prompt and text join.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that these tokens complete."""
        spell = self._tokenizer.token_bytes
        return self._decoder.decode(b"".join([spell(i) for i in ids if i not in self._skipped]))

    def finish(self) -> str:
        """What is left of an unfinished character: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


def special_tokens(folder: str | Path) -> dict[str, str]:
    """bos_token, eos_token and the like by name, from tokenizer_config.json and the older special_tokens_map.json."""
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = Path(folder) / file
        for name, value in (read_json(path) if path.is_file() else {}).items():
            text: Any = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                named[name] = text
    return named


def _byte_of() -> dict[str, int]:
    """GPT-2's byte alphabet (Radford et al. 2019): printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of()
