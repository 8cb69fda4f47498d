import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlserve.errors import DataError
from vlserve.runtime.manifest import ImageInput
from vlserve.training.data import (
    leave_out_other_kind,
    leave_out_trained,
    leave_out_unknown,
    read_items,
)
from vlserve.training.json_lines import refuse_bad_lines, write_bad_lines
from vlserve.training.samples import decode_images

WriteLines = Callable[..., Path]
SIZE = ImageInput(height=16, width=16)


def item(item_id: str = "1", **fields: Any) -> dict[str, Any]:
    return {"id": item_id, "img": "a.jpg", "text": "title", "label": "x", **fields}


def reasons(lines: Any) -> dict[int, str]:
    return {bad.line: bad.reason for bad in lines}


def test_good_lines_keep_their_order_and_blank_lines_count(write_lines: WriteLines) -> None:
    path = write_lines(item("1", year=1999), b"", item("2", img="b.jpg", text="", label="y"))
    file = read_items(path)
    assert [(entry.id, entry.line, entry.labels) for entry in file.items] == [
        ("1", 1, ("x",)),
        ("2", 3, ("y",)),
    ]
    assert file.items[1].image == path.parent / "b.jpg"
    assert not file.bad_lines and not file.multi_label


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object but a list: write each of its objects"),
        (b"7", "not a JSON object"),
        ({"id": "2", "text": "t"}, "missing field img, label"),
        (item("2", text=None), "text must be a string"),
        (item("2", id=True), "id must be a string"),
        (item("2", id=1.5), "id must be a string"),
        (item("2", id=1), "id 1 is on line 1 already"),
        (item("2", img=""), "img must be a string"),
        (item("2", label=3.5), "label must be a string"),
        (item("2", label=True), "label must be a string"),
        (b"{'id': '2', 'img': 'a.jpg'}", "not JSON: .* looks like Python's str"),
        (b'{"id": "2", "text": None}', "not JSON: .* write lines with json.dumps"),
        (b'{"id": "2"},', "not JSON: .* one object a line, without commas between them"),
        (b"[", "not JSON: .* one whole object a line"),
        (b"2,a.jpg,title,x", "not JSON: .* it looks like CSV"),
        (item("2", label=""), "label must be a string"),
        (item("2", label=["x"]), "label is a list, unlike in the lines before"),
        (item("1"), "id 1 is on line 1 already"),
        (item("\ud800"), "lone surrogate"),
    ],
)
def test_a_bad_line_is_left_out_with_its_number_and_reason(
    write_lines: WriteLines, line: Any, reason: str
) -> None:
    file = read_items(write_lines(item("1"), line, item("3")))
    assert [entry.id for entry in file.items] == ["1", "3"]
    assert list(reasons(file.bad_lines)) == [2]
    assert re.search(reason, file.bad_lines[0].reason)


def test_whole_numbers_are_taken_as_text(write_lines: WriteLines) -> None:
    file = read_items(write_lines(item("a", id=7, label=3), item("b", label="3")))
    assert [(entry.id, entry.labels) for entry in file.items] == [("7", ("3",)), ("b", ("3",))]
    several = read_items(write_lines(item("a", id=0, label=[1, "1", 2])))
    assert several.multi_label and several.items[0].labels == ("1", "2")


def test_images_and_texts_that_serving_refuses_are_bad_lines(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:500])
    path = write_lines(
        item("1"),
        item("2", img="missing.jpg"),
        item("3", img="cut.jpg"),
        item("4", img="\0"),
        item("5", text="nul \0"),
        item("6", text="half an emoji \ud83d"),
        item("7", text="a" * 70_000),
    )
    file, images = decode_images(read_items(path), SIZE)
    assert [entry.id for entry in file.items] == ["1"] and list(images) == [1]
    messages = reasons(file.bad_lines)
    assert list(messages) == [2, 3, 4, 5, 6, 7]
    assert "missing.jpg cannot be read" in messages[2]
    assert "cut.jpg" in messages[3]
    assert "NUL" in messages[5] and "surrogate" in messages[6] and "limit" in messages[7]


def test_validation_items_that_cannot_be_judged_are_bad_lines(write_lines: WriteLines) -> None:
    train = read_items(write_lines(item("1"), item("2", label="y"), name="train.jsonl"))
    val = read_items(write_lines(item("1"), item("3", label="z"), item("4"), name="val.jsonl"))
    val = leave_out_unknown(leave_out_trained(val, train), ["x", "y"])
    assert [entry.id for entry in val.items] == ["4"]
    assert reasons(val.bad_lines) == {1: "its id is in train.jsonl too", 2: "unknown label z"}


def test_a_file_of_the_other_kind_is_refused_line_by_line(write_lines: WriteLines) -> None:
    file = read_items(write_lines(item("1", label=["x", "x"]), item("2", label=[])))
    assert file.multi_label and [entry.labels for entry in file.items] == [("x",), ()]
    other = leave_out_other_kind(file, multi_label=False)
    assert not other.items and len(other.bad_lines) == 2
    with pytest.raises(DataError, match=r"no usable line: items.jsonl:1: has a list of labels"):
        refuse_bad_lines((other,), strict=False)


def test_bad_lines_are_counted_written_and_refused_when_strict(
    write_lines: WriteLines, tmp_path: Path
) -> None:
    file = read_items(write_lines(item("1"), b"{", b"[]", item("2")))
    bad = refuse_bad_lines((file,), strict=False)
    write_bad_lines(tmp_path / "bad.json", bad)
    record = json.loads((tmp_path / "bad.json").read_text(encoding="utf-8"))
    assert record["count"] == 2
    assert [line["line"] for line in record["lines"]] == [2, 3]
    with pytest.raises(DataError, match=r"2 bad line\(s\): items.jsonl:2: not JSON"):
        refuse_bad_lines((file,), strict=True)


@pytest.mark.parametrize(
    ("good", "bad", "refused"), [(8, 52, True), (2, 3, True), (3, 3, False), (30, 30, False)]
)
def test_a_file_of_which_more_than_half_cannot_be_used_is_refused(
    good: int, bad: int, refused: bool, write_lines: WriteLines
) -> None:
    lines = [*(item(str(number)) for number in range(good)), *[b"{"] * bad]
    file = read_items(write_lines(*lines))
    if not refused:
        assert len(refuse_bad_lines((file,), strict=False)) == bad
        return
    message = rf"^{bad} of the {good + bad} lines of \S+items\.jsonl cannot be used: items\.jsonl:"
    with pytest.raises(DataError, match=message):
        refuse_bad_lines((file,), strict=False)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_items(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no usable line, it is empty"):
        refuse_bad_lines((read_items(tmp_path / "empty.jsonl"),), strict=False)
