"""BERT's vocabulary: vocab.txt, or the tokenizer.json that transformers 5 writes instead."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import ExportError
from vlserve.exporter.wordpiece import read_vocabulary, wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "猫", "##s"]


def tokenizer_json(**model: Any) -> dict[str, Any]:
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    return {
        "added_tokens": [{"id": 9, "content": "[DEC]"}, {"id": 0, "content": "[PAD]"}],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "model": {"type": "WordPiece", "vocab": vocabulary, **model},
    }


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    theirs = BertTokenizer(vocab=str(tmp_path / "words.txt"))
    theirs.add_special_tokens({"bos_token": "[DEC]"})
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    assert read_vocabulary(tmp_path / "vocab.txt") == WORDS
    text = "A red 猫s [SEP]"
    assert wordpiece(WORDS).encode(text).ids == theirs(text)["input_ids"]


def test_vocab_txt_is_preferred_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    assert read_vocabulary(tmp_path / "vocab.txt") == WORDS
    assert read_vocabulary(tmp_path / "tokenizer.json") == WORDS
    (tmp_path / "vocab.txt").write_text("\ufeff[PAD]\r\n[UNK]\r\n", encoding="utf-8")
    assert read_vocabulary(tmp_path / "vocab.txt") == ["[PAD]", "[UNK]"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tokenizer_json(type="BPE"), "is BPE; only a tokenizer of BERT's"),
        ({}, "is no tokenizer's; only"),
        ([1], "is no tokenizer's; only"),
        (tokenizer_json() | {"normalizer": {"lowercase": False}}, "keeps capitals apart"),
        (tokenizer_json(vocab={"[PAD]": 0, "a": 2**60}), "has no token of id 1"),
        (tokenizer_json(vocab={"[PAD]": "a"}), "is no tokenizer's: TypeError"),
        (tokenizer_json() | {"added_tokens": [{}]}, "is no tokenizer's: KeyError"),
    ],
    ids=["bpe", "object", "list", "cased", "hole", "ids", "added"],
)
def test_another_tokenizer_is_refused(content: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ExportError, match=rf"tokenizer\.json {reason}"):
        read_vocabulary(tmp_path / "vocab.txt")


def test_where_there_is_neither_the_usual_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"vocabulary vocab\.txt cannot be read"):
        read_vocabulary(tmp_path / "vocab.txt")
