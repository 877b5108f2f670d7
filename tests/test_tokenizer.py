"""Text becomes tokens and text again; a growing answer never splits a character, whatever the tokenizer's kind."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from inferplane.core.tokenizer import Tokenizer
from inferplane.errors import CheckpointError, RequestError
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "Grüße aus Köln, schöne Straße",
    "日本語のテキスト",
    "I'm 12 years old. 🎈🎉 👩‍👩‍👧",
] * 3


def byte_level() -> Library:
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|start|>", "<|end|>"],
            show_progress=False,
        ),
    )
    made.add_special_tokens(["<\uff5cdébut▁de▁phrase\uff5c>"])
    made.add_tokens([tokenizers.AddedToken("    ", normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    return made


def byte_fallback() -> Library:
    """As SentencePiece BPE is converted: ▁ for a space, <0xHH> for bytes without a token."""
    letters = [*"abcdefghijklmnopqrstuvwxyzIß.,'", "▁", "▁a", "he", "▁t"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("h", "e"), ("▁", "t")]
    made = Library(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def metaspace() -> Library:
    made = byte_fallback()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)])
    return made


def word_piece() -> Library:
    pieces = ["[UNK]", "the", "fox", "jump", "##s", "##ed", "a", "##a", "."]
    made = Library(models.WordPiece(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


KINDS: dict[str, Library] = {
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(),
    "metaspace": metaspace(),
    "word-piece": word_piece(),
}
TEXTS = ["hello there", "Grüße 🎈🎉 aus 日本", "a  b\n\tc ", "👩‍👩‍👧 family", "", " leading", "�", "the fox jumps."]


def grown(tokenizer: Tokenizer, ids: Sequence[int], skip: bool = True) -> str:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return "".join([detokenizer.push([i]) for i in ids]) + detokenizer.finish()


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "metaspace"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_token_by_token(kind: str, text: str) -> None:
    tokenizer = Tokenizer(KINDS[kind])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == (text.lstrip() if kind == "metaspace" else text)
    assert grown(tokenizer, ids) in (tokenizer.decode(ids), " " + tokenizer.decode(ids))


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "metaspace"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_comes_back_and_no_delta_holds_a_broken_character(kind: str, text: str) -> None:
    tokenizer = Tokenizer(KINDS[kind])
    ids = tokenizer.encode(text)
    detokenizer = tokenizer.detokenizer()
    deltas = [detokenizer.push([i]) for i in ids]
    whole = tokenizer.decode(ids)
    assert all("�" not in delta for delta in deltas) or "�" in whole
    assert detokenizer.finish() == ""
    assert "".join(deltas) in (whole, " " + whole)


@pytest.mark.parametrize("skip", [True, False], ids=["skip-special", "keep-special"])
@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 405), max_size=30))
def test_any_tokens_of_a_byte_level_vocabulary_grow_into_what_they_decode_to(skip: bool, ids: list[int]) -> None:
    tokenizer = Tokenizer(KINDS["byte-level"])
    assert grown(tokenizer, ids, skip) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_pieces_of_words_join_as_the_library_joins_them() -> None:
    tokenizer = Tokenizer(KINDS["word-piece"])
    ids = tokenizer.encode("the fox jumps a.")
    assert grown(tokenizer, ids).lstrip() == tokenizer.decode(ids) == "the fox jumps a ."


def test_a_character_over_several_tokens_appears_when_it_is_whole() -> None:
    tokenizer = Tokenizer(KINDS["byte-fallback"])
    detokenizer = tokenizer.detokenizer()
    first = 3
    assert [detokenizer.push([first + byte]) for byte in "🎈€".encode()] == ["", "", "", "🎈", "", "", "€"]


def test_damaged_bytes_become_replacement_characters_and_block_nothing() -> None:
    tokenizer = Tokenizer(KINDS["byte-fallback"])
    detokenizer = tokenizer.detokenizer()
    first, letter = 3, tokenizer.encode("x")[-1]
    assert detokenizer.push([first + 0xE2, first + 0x82, letter]) == "�x"
    assert detokenizer.push([first + 0xF0]) == ""
    assert detokenizer.finish() == "�"


@pytest.mark.parametrize("kind", list(KINDS))
def test_detokenizing_takes_the_same_time_per_token_however_long_the_text(kind: str) -> None:
    tokenizer = Tokenizer(KINDS[kind])
    ids = [i % tokenizer.vocab_size for i in range(50_000)]
    detokenizer = tokenizer.detokenizer()
    started = time.perf_counter()
    for i in ids:
        detokenizer.push([i])
    assert (time.perf_counter() - started) / len(ids) < 50e-6


def test_special_tokens_are_added_on_request_and_skipped_on_request() -> None:
    tokenizer = Tokenizer(KINDS["byte-level"])
    assert tokenizer.encode("fox")[0] == 0
    assert tokenizer.encode("fox", add_special_tokens=False)[0] != 0
    ids = [0, *tokenizer.encode("fox", add_special_tokens=False), 1]
    assert (grown(tokenizer, ids), grown(tokenizer, ids, skip=False)) == ("fox", "<|start|>fox<|end|>")


@pytest.mark.parametrize("piece", ["<\uff5cdébut▁de▁phrase\uff5c>", "    "])
def test_an_added_token_outside_the_byte_alphabet_stands_for_itself(piece: str) -> None:
    tokenizer = Tokenizer(KINDS["byte-level"])
    ids = [*tokenizer.encode("fox", False), *tokenizer.encode(piece, False), *tokenizer.encode("fox", False)]
    assert grown(tokenizer, ids, skip=False) == f"fox{piece}fox"


@pytest.mark.parametrize("adds", [True, False], ids=["add-bos", "add-no-bos"])
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_text_is_framed_as_in_transformers(kind: str, adds: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    start, end = ("<|start|>", "<|end|>") if kind == "byte-level" else ("<s>", "</s>")
    KINDS[kind].save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": end, "add_bos_token": adds}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a fox", "", start + "fox"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False)


def test_truncation_and_padding_of_training_are_off() -> None:
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    assert len(Tokenizer(library).encode("the quick brown fox jumps over the dog, and again")) not in (4, 64)


def test_a_folder_gives_the_tokenizer_its_end_tokens_and_its_size(tmp_path: Path) -> None:
    KINDS["byte-level"].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end_tokens == (1,)
    assert tokenizer.vocab_size == KINDS["byte-level"].get_vocab_size()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no tokenizer.json.*save_pretrained"), ("{", "cannot be read")], ids=["missing", "damaged"]
)
def test_a_missing_or_damaged_tokenizer_says_what_to_do(text: Any, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_text_that_is_no_unicode_fails_one_request() -> None:
    with pytest.raises(RequestError, match="valid Unicode"):
        Tokenizer(KINDS["byte-level"]).encode("\ud800")
