"""CSV files and Python's str(dict) to JSON lines: what is read, and what is told by its line."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from vlserve.data.convert import Converted, from_csv, from_repr
from vlserve.data.csv_records import MAX_RECORD_LINES, Record, read_records
from vlserve.data.fields import LabelMapping
from vlserve.errors import DataError

MELD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime\n"
    '1,"Oh my God, he’s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"\n'
    '2,What?,Monica,surprise,neutral,0,1,4,7,"00:21:01,927","00:21:03,261"\n'
    '3,"He said ""no"".",Joey,joy,positive,1,0,4,7,"00:21:01,927","00:21:03,261"\n'
)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def reasons(result: Converted) -> dict[int, str]:
    return {bad.line: bad.reason for kind in result.left_out.kinds() for bad in kind.shown}


def written(tmp_path: Path, text: str | bytes, name: str = "in.csv") -> Path:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_columns_templates_and_labels_become_items(tmp_path: Path) -> None:
    columns = {
        "id": "dia{Dialogue_ID}_utt{Utterance_ID}",
        "img": "images/dia{Dialogue_ID}_utt{Utterance_ID}.jpg",
        "text": "Utterance",
        "label": "Sentiment",
    }
    result = from_csv(
        [written(tmp_path, MELD)],
        tmp_path / "out.jsonl",
        columns,
        keep=["Speaker"],
        labels=LabelMapping.parse("neutral=drop,negative=0,negativ=1"),
    )
    assert lines_of(result.output) == [
        {
            "id": "dia0_utt0",
            "img": "images/dia0_utt0.jpg",
            "text": "Oh my God, he’s lost it.",
            "label": "0",
            "Speaker": "Phoebe",
        },
        {
            "id": "dia1_utt0",
            "img": "images/dia1_utt0.jpg",
            "text": 'He said "no".',
            "label": "positive",
            "Speaker": "Joey",
        },
    ]
    assert (result.written, dict(result.dropped)) == (2, {"neutral": 1})
    assert (dict(result.labels), result.unseen) == ({"0": 1, "positive": 1}, ("negativ",))


def test_columns_of_the_fields_names_need_no_mapping(tmp_path: Path) -> None:
    file = written(tmp_path, "\ufefftext\tlabel\tviews\na\tb\t3\n", "in.tsv")
    from_csv([file], tmp_path / "out.jsonl", {})
    assert lines_of(tmp_path / "out.jsonl") == [{"id": "in-1", "text": "a", "label": "b"}]


def test_a_broken_quote_is_told_by_its_line_and_takes_no_neighbour_along(tmp_path: Path) -> None:
    text = (
        "id,text\n"
        "1,good\n"
        '2,"never closed\n'
        "3,good\n"
        '4,"two\nlines"\n'
        '5,"closed"early\n'
        "6,a,b\n"
        '7,5" disk\n'
        '8,"ends open'
    )
    result = from_csv([written(tmp_path, text)], tmp_path / "out.jsonl", {})
    assert {line["id"]: line["text"] for line in lines_of(result.output)} == {
        "1": "good",
        "3": "good",
        "4": "two\nlines",
        "7": '5" disk',
    }
    messages = reasons(result)
    assert list(messages) == [3, 7, 8, 10]
    assert "a quote is in the wrong place" in messages[3]
    assert "a quote is in the wrong place" in messages[7]
    assert messages[8] == "it has 3 columns, and the first line 2"
    assert messages[10] == "a quote is opened on this line, and none closes it"


def test_an_open_quote_costs_one_line_of_many(tmp_path: Path) -> None:
    rest = [f"{number},x\n" for number in range(3 * MAX_RECORD_LINES)]
    file = written(tmp_path, 'id,text\n0,"open\n' + "".join(rest))
    records = list(read_records(file))
    assert [record.line for record in records if record.why] == [2]
    assert len(records) == len(rest) + 2
    assert records[-1] == Record(len(rest) + 2, (str(len(rest) - 1), "x"))


def test_a_long_record_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, reader = list[str](), csv.reader

    def count_lines(lines: Iterable[str], **how: Any) -> Any:
        return reader((inputs.append(line) or line for line in lines), **how)

    monkeypatch.setattr(csv, "reader", count_lines)
    long = "\n".join(["x"] * (MAX_RECORD_LINES - 1))
    records = list(read_records(written(tmp_path, f'id,text\n0,"{long}"\n1,y\n')))
    assert [record.cells for record in records] == [("id", "text"), ("0", long), ("1", "y")]
    assert len(inputs) == MAX_RECORD_LINES + 1


def test_bytes_that_are_not_utf8_are_told_by_line_and_encoding(tmp_path: Path) -> None:
    good = "".join(f"{number},cover\n" for number in range(3))
    result = from_csv(
        [written(tmp_path, f"id,text\n{good}".encode() + "9,caf\xe9\n".encode("latin-1"))],
        tmp_path / "out.jsonl",
        {},
    )
    assert reasons(result) == {5: "not UTF-8: invalid continuation byte at byte 5"}
    chinese = "编号,标题\n" + "".join(f"{n},可爱的猫咪视频合集第{n}集\n" for n in range(40))
    file = written(tmp_path, chinese.encode("gb18030"), "gbk.csv")
    with pytest.raises(DataError, match=r"line 1, which names the columns: not UTF-8.*GB18030"):
        from_csv([file], tmp_path / "gbk.jsonl", {"text": "标题"})
    wide = written(tmp_path, MELD.encode("utf-16"), "wide.csv")
    with pytest.raises(DataError, match=r"iconv -f UTF-16"):
        from_csv([wide], tmp_path / "wide.jsonl", {"text": "Utterance"})
    assert not (tmp_path / "gbk.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "columns", "why"),
    [
        ("", {}, "has no line"),
        ("a,b\n1,2\n", {}, "name columns, as --column text=TITLE; it has a, b"),
        ("a,b\n1,2\n", {"text": "c"}, "has no column c, which is to be text; it has a, b"),
        ("a,b\n1,2\n", {"img": "{a}/{c}.jpg"}, "has no column c, which is to be img"),
        ("a,a\n1,2\n", {"text": "a"}, "two columns have the same name"),
        ("id,text\n", {}, "has no line"),
        ("id,text\n,x\n,y\n2,z\n", {}, r"2 of the 3 lines of .* cannot be used: .*:2: id is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_nothing_written(
    tmp_path: Path, text: str, columns: dict[str, str], why: str
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("before", encoding="utf-8")
    with pytest.raises(DataError, match=why):
        from_csv([written(tmp_path, text)], output, columns)
    assert output.read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.jsonl"]


def test_strict_refuses_any_line_and_an_input_is_never_written_over(tmp_path: Path) -> None:
    file = written(tmp_path, "id,text\n1,a\n2,b\n,c\n")
    with pytest.raises(DataError, match=r"1 of the 3 lines"):
        from_csv([file], tmp_path / "out.jsonl", {}, strict=True)
    with pytest.raises(DataError, match="is an input too"):
        from_csv([file], file, {})


@pytest.mark.parametrize("mapping", ["a", "a=", "=b", "a=b,a=c"])
def test_a_label_mapping_that_is_none_is_refused(mapping: str) -> None:
    with pytest.raises(ValueError, match=r"is not LABEL=NEW|is there twice"):
        LabelMapping.parse(mapping)


def test_dicts_are_read_as_literals_and_never_run(tmp_path: Path) -> None:
    lines = [
        "{'id': 1, 'img': 'a.jpg', 'text': \"it's\", 'label': ('x', 'y'), 'ok': True, 'no': None}",
        "{'id': '2', 'text': 'a\\nb \\d'}",
        "{'id': '3', 'text': '猫'}",
        "__import__('os').system('touch ran')",
        "{'id': open('ran', 'w')}",
        "{'id': b'bytes'}",
        "{'id': {1, 2}}",
        "{1: 'id'}",
        "['id']",
        "[" * 5000,
        "{'id': 1e999}",
        "{'id': '4'",
    ]
    good = [f"{{'id': '{number}'}}" for number in range(10, 20)]
    file = written(tmp_path, "\n".join([*lines, *good]), "in.txt")
    result = from_repr([file], tmp_path / "out.jsonl")
    first, second, third, *rest = lines_of(result.output)
    assert first == {
        "id": 1, "img": "a.jpg", "text": "it's", "label": ["x", "y"], "ok": True, "no": None,
    }  # fmt: skip
    assert (second["text"], third["text"], len(rest)) == ("a\nb \\d", "猫", 10)
    assert set(reasons(result)) <= set(range(4, 13))
    assert result.left_out.count == 9
    assert not Path("ran").exists()
