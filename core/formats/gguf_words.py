"""A tokenizer out of a GGUF file's metadata, where the file names one that is known to the letter."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import CheckpointError
from .gguf_file import GgufFile

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut a text into words; they differ in the digits that stay together."""
DIGITS = {"llama-bpe": 3, "qwen2": 1}
CONTROL, USER_DEFINED = 3, 4
REMEDY = "name a tokenizer, --tokenizer FOLDER (the original model's, with tokenizer.json), or put tokenizer.json beside the file"


def tokenizer_of(file: GgufFile) -> tokenizers.Tokenizer:
    """Raises `CheckpointError` for any but byte-level BPE as Llama 3 and Qwen 2 have it: a guess would be wrong now and then."""
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    kind, pre = said.get("model"), said.get("pre")
    if kind != "gpt2" or pre not in DIGITS or not said.get("tokens") or "merges" not in said:
        raise CheckpointError(
            f"{file.path} has a tokenizer of the kind {kind!r} ({pre!r}); built from a file are gpt2 with {', '.join(DIGITS)}. "
            f"Remedy: {REMEDY}."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in said["merges"]]
    vocab = {token: i for i, token in enumerate(said["tokens"])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS % DIGITS[pre]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    kinds = zip(said["tokens"], said.get("token_type", []), strict=False)
    made.add_tokens([
        AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in kinds if kind in (CONTROL, USER_DEFINED)
    ])
    if said.get("add_bos_token", pre == "llama-bpe") and "bos_token_id" in said:
        first = said["tokens"][said["bos_token_id"]]
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, said["bos_token_id"])],
        )
    return made


def template_of(file: GgufFile) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Chat templates and special tokens, each by name."""
    said, tokens = file.metadata, file.metadata.get("tokenizer.ggml.tokens", [])
    text: Any = said.get("tokenizer.chat_template")
    ids = {name: said.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    named = {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and i < len(tokens)}
    return ({"default": text} if text else {}), named
