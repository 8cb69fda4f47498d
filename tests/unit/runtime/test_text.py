"""The saved vocabulary decides, and every text has a place in a batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from vlserve.runtime.errors import ArchiveUnreadable, ErrorCode, RequestError
from vlserve.runtime.manifest import TextInput
from vlserve.runtime.text import Tokenizer, check_size, load_tokenizer, read_text

VOCABULARY = {"a": 1, "b": 2, "猫": 3, "🏆": 4}


def characters(folder: Path, vocabulary: Any = VOCABULARY, **changes: Any) -> Tokenizer:
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    fields = {"tokenizer": "characters", "file": "vocabulary.json", "max_length": 5}
    return load_tokenizer(TextInput.model_validate(fields | changes), folder)


def test_old_vocabularies_share_0_and_pad_to_max(tmp_path: Path) -> None:
    batch = characters(tmp_path).encode(["ab猫", "x🏆", "aaaaaaa", ""])
    assert batch.ids.tolist() == [
        [1, 2, 3, 0, 0],
        [0, 4, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]
    assert batch.lengths.tolist() == [3, 2, 5, 1]
    assert batch.ids.dtype == batch.lengths.dtype == np.int64


def test_new_vocabularies_keep_padding_and_unknown_apart(tmp_path: Path) -> None:
    tokenizer = characters(tmp_path, pad_id=7, unknown_id=9, pad_to_max=False)
    assert tokenizer.encode(["a?", "b"]).ids.tolist() == [[1, 9], [2, 7]]
    assert tokenizer.encode(["", ""]).ids.tolist() == [[7], [7]]
    assert tokenizer.encode(["", ""]).lengths.tolist() == [1, 1]


VARIANTS = ["a\u00e9b", "ae\u0301b", "\u200ba\u00e9b", " a\u00e9b\n", "a\u200b\u00e9b\ufeff"]


def test_texts_that_look_the_same_are_read_the_same_where_it_is_declared(tmp_path: Path) -> None:
    vocabulary = {**VOCABULARY, "\u00e9": 5, " ": 6}
    tokenizer = characters(tmp_path, vocabulary, cleaning="invisible", max_length=9)
    assert [row.tolist() for row in tokenizer.rows(VARIANTS)] == [[1, 5, 2]] * len(VARIANTS)
    assert tokenizer.ids(f"{VARIANTS[1]}\u3000a").tolist() == [1, 5, 2, 6, 1]
    as_before = characters(tmp_path, vocabulary, max_length=9)
    assert as_before.spec.cleaning is None
    assert len({tuple(row) for row in as_before.rows(VARIANTS)}) == len(VARIANTS)


def test_an_empty_batch_has_a_shape(tmp_path: Path) -> None:
    assert characters(tmp_path).encode([]).ids.shape == (0, 5)
    assert characters(tmp_path, pad_to_max=False).encode([]).ids.shape == (0, 1)


@given(texts=st.lists(st.text("ab猫🏆xyz", max_size=8), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_neighbours(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = characters(tmp_path_factory.getbasetemp(), pad_to_max=False, unknown_id=9)
    batch = tokenizer.encode(texts)
    for text, row, length in zip(texts, batch.ids, batch.lengths, strict=True):
        alone = tokenizer.encode([text])
        assert alone.lengths[0] == length == max(1, min(len(text), 5))
        assert row[:length].tolist() == alone.ids[0].tolist()
        assert not row[length:].any()


@pytest.mark.parametrize(
    "vocabulary", [["a", "b"], {"a": "1"}, {"a": 1.5}, {"a": -1}, {"a": True}, "a"]
)
def test_what_is_no_vocabulary(tmp_path: Path, vocabulary: Any) -> None:
    with pytest.raises(ArchiveUnreadable, match=r"vocabulary\.json"):
        characters(tmp_path, vocabulary)


def test_a_missing_or_broken_vocabulary(tmp_path: Path) -> None:
    spec = TextInput(tokenizer="characters", file="v.json", max_length=5)
    with pytest.raises(ArchiveUnreadable, match=r"v\.json"):
        load_tokenizer(spec, tmp_path)
    (tmp_path / "v.json").write_bytes(b"\xff{")
    with pytest.raises(ArchiveUnreadable, match=r"v\.json"):
        load_tokenizer(spec, tmp_path)


def wordpiece(folder: Path) -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s", "猫", "video"]
    model = tokenizers.models.WordPiece(
        {word: i for i, word in enumerate(words)}, unk_token="[UNK]"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=64)  # the manifest decides, not what the file was saved with
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = TextInput(
        tokenizer="wordpiece", file="tokenizer.json", max_length=5, pad_to_max=False, unknown_id=1
    )
    return load_tokenizer(spec, folder)


def test_wordpiece_cuts_inside_its_special_tokens(tmp_path: Path) -> None:
    batch = wordpiece(tmp_path).encode(["Cats 猫", "video video video video", "", "dog"])
    assert batch.ids.tolist() == [
        [2, 4, 5, 6, 3],
        [2, 7, 7, 7, 3],
        [2, 3, 0, 0, 0],
        [2, 1, 3, 0, 0],
    ]
    assert batch.lengths.tolist() == [5, 5, 2, 3]


def test_texts_together_have_the_ids_of_each_alone(tmp_path: Path) -> None:
    tokenizer, texts = wordpiece(tmp_path), ["Cats 猫", "", "dog video video video video"]
    together = tokenizer.rows(texts)
    assert [row.tolist() for row in together] == [tokenizer.ids(text).tolist() for text in texts]


def test_a_broken_wordpiece_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}", encoding="utf-8")
    spec = TextInput(tokenizer="wordpiece", file="t.json", max_length=5)
    with pytest.raises(ArchiveUnreadable, match=r"t\.json"):
        load_tokenizer(spec, tmp_path)


@pytest.mark.parametrize("value", ["猫 video 🏆", "", "\n\t", "\ufffd"])
def test_text_from_a_form_is_text_from_json(value: str) -> None:
    assert read_text(value) == read_text(value.encode()) == read_text(bytearray(value, "utf-8"))


@pytest.mark.parametrize(
    "value",
    ["a\0b", b"a\0b", "\ud800", "ok \udfff", b"\xff\xfe", b"\xed\xa0\x80", "标题".encode("gbk")],
)
def test_what_is_no_text(value: str | bytes) -> None:
    with pytest.raises(RequestError, match="title") as error:
        read_text(value, "title")
    assert error.value.code is ErrorCode.TEXT_UNREADABLE


@pytest.mark.parametrize("value", [None, 3, 1.5, True, ["a"], {"a": 1}])
def test_what_is_not_even_a_string(value: Any) -> None:
    with pytest.raises(ValueError, match="must be text"):
        read_text(value)


def test_the_byte_limit_counts_utf8() -> None:
    spec = TextInput(tokenizer="characters", file="v", max_length=5, max_bytes=6)
    check_size("猫猫", spec)
    with pytest.raises(RequestError, match="7 bytes") as error:
        check_size("猫猫a", spec)
    assert error.value.code is ErrorCode.TEXT_TOO_LONG
