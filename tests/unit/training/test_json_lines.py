"""Lines that are left out: what is shown of them, and what the bytes of a file look like."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import DataError
from vlserve.loadgen.dataset_requests import read_dataset
from vlserve.quantize.items import read_parts
from vlserve.retrieval.corpus import read_corpus
from vlserve.text_files import NotUtf8, encoding_hint, encoding_of, read_utf8
from vlserve.training.data import read_items
from vlserve.training.evaluators.items import AnswerItem, EntailItem, PairedItem, read_task_file
from vlserve.training.json_lines import BadLine, by_kind, refuse_bad_lines

TITLES = (
    "猫和狗在公园里玩耍",
    "今天的晚饭是红烧肉配米饭",
    "教你三分钟学会剪辑视频",
    "手机评测",
    "搞笑合集",
)


def lines(count: int = 60) -> str:
    fields = (
        {"id": str(at), "img": f"images/{at}.jpg", "text": TITLES[at % 5], "label": "生活"}
        for at in range(count)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in fields)


def as_training(path: Path) -> object:
    return refuse_bad_lines((read_items(path),), strict=False)


def as_answers(path: Path) -> object:
    return refuse_bad_lines((read_task_file(path, AnswerItem),), strict=False)


def as_pairs(path: Path) -> object:
    return refuse_bad_lines((read_task_file(path, PairedItem),), strict=False)


READERS: dict[str, Callable[[Path], object]] = {
    "train": as_training,
    "evaluate": as_answers,
    "pairs": as_pairs,
    "index": read_corpus,
    "calibrate": read_parts,
    "stress": read_dataset,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gb18030", "GB18030"),
        ("big5", "BIG5"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
def test_every_reader_names_the_encoding(
    encoding: str, name: str, reader: str, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines().encode(encoding, errors="replace"))
    with pytest.raises(DataError) as refusal:
        READERS[reader](tmp_path / "train.jsonl")
    assert f"its bytes look like {name}: convert it, as with iconv -f {name} -t UTF-8" in str(
        refusal.value
    )


def test_a_few_ascii_lines_do_not_hide_it(tmp_path: Path) -> None:
    """As reported: 52 of 60 lines left out, and trained on the rest."""
    ascii_lines = "".join(
        json.dumps({"id": f"a{at}", "img": "a.jpg", "text": "cat", "label": "x"}) + "\n"
        for at in range(8)
    )
    (tmp_path / "train.jsonl").write_bytes((ascii_lines + lines(52)).encode("gb18030"))
    with pytest.raises(DataError, match=r"^52 of the 60 lines .* look like GB18030"):
        as_training(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"^52 bad line\(s\): .* look like GB18030"):
        refuse_bad_lines((read_items(tmp_path / "train.jsonl"),), strict=True)


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_of_utf_8_is_passed_over(reader: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for at in range(60):
        (tmp_path / "images" / f"{at}.jpg").write_bytes(b"jpeg")
    (tmp_path / "train.jsonl").write_text("\ufeff" + lines(), encoding="utf-8")
    assert READERS[reader](tmp_path / "train.jsonl") is not None
    assert encoding_hint(tmp_path / "train.jsonl") == ""


def test_nothing_is_said_of_what_cannot_be_told() -> None:
    assert encoding_of(b"plain") is None
    assert encoding_of("猫".encode() * 30_000) is None  # cut within a character
    assert encoding_of(b"\0" * 3 + b"x" * 60) is None
    assert encoding_hint(Path("/nowhere")) == ""


def test_other_text_files_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(json.dumps(TITLES * 4, ensure_ascii=False).encode("gbk"))
    with pytest.raises(NotUtf8, match=r"not UTF-8 at byte \d+; its bytes look like GB18030"):
        read_utf8(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("schema", "field", "value", "expected"),
    [
        (AnswerItem, "label", 2, ("2",)),
        (AnswerItem, "label", [2, "two"], ("2", "two")),
        (EntailItem, "label", 1, "1"),
        (AnswerItem, "id", 17, "17"),
    ],
)
def test_whole_numbers_are_names_in_every_task(
    schema: Any, field: str, value: Any, expected: Any, tmp_path: Path
) -> None:
    fields = {"id": "a", "img": "a.jpg", "text": "t", "label": "x"} | {field: value}
    (tmp_path / "items.jsonl").write_text(json.dumps(fields), encoding="utf-8")
    (item,) = read_task_file(tmp_path / "items.jsonl", schema).items
    assert getattr(item, field) == expected


def test_a_corpus_may_have_whole_numbers_as_ids(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(
        '{"id": 3, "text": "t"}\n{"id": "3", "text": "u"}\n', encoding="utf-8"
    )
    corpus = read_corpus(tmp_path / "items.jsonl")
    assert [item.id for item in corpus.items] == ["3"]
    assert corpus.bad_lines[0].reason == "id 3 is on line 1 already"


def bad(reason: str, line: int) -> BadLine:
    return BadLine("/data/train.jsonl", line, reason)


def test_five_of_each_kind_are_shown_and_the_others_counted() -> None:
    bad_lines = [bad(f"image /d/{at}.jpg cannot be read: No such file", at) for at in range(430)]
    bad_lines += [bad(f"id {name} is on line 3 already", 500) for name in ("猫", "cat x", "7")]
    bad_lines += [bad(f"unknown label {name}", 600) for name in "abcdef"]
    kinds = by_kind(bad_lines)
    assert [(len(kind.shown), kind.more) for kind in kinds] == [(5, 425), (3, 0), (5, 1)]
    assert kinds[0].shown == tuple(bad_lines[:5])


def test_the_kind_of_a_long_reason_takes_no_longer_than_its_length() -> None:
    """With the square of it this would take hours."""
    plain = "x" * 1_000_000
    assert BadLine("a.jsonl", 1, f"{plain} has 3 names").kind == f"{plain} has … names"
    assert BadLine("a.jsonl", 1, f"unknown label {plain}").kind == "unknown label …"
    assert BadLine("a.jsonl", 1, f"id {plain} is on line 7 too").kind == "id … is on line … too"


def test_very_many_kinds_do_not_fill_the_screen() -> None:
    words = [f"{first}{second}" for first in "abcdefghij" for second in "abcdefghij"]
    kinds = by_kind([bad(f"fault {word}", 1) for word in words])
    assert sum(len(kind.shown) for kind in kinds) <= 15
    assert sum(len(kind.shown) + kind.more for kind in kinds) == 100


def test_commands_print_so(capsys: pytest.CaptureFixture[str]) -> None:
    from vlserve.cli.bad_lines import print_bad_lines

    print_bad_lines([bad("missing field img", at) for at in range(439)])
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "left out: /data/train.jsonl, line 0: missing field img"
    assert output[5:] == ["left out: 434 more like these", "439 lines left out"]
    print_bad_lines([])
    assert capsys.readouterr().out == ""
