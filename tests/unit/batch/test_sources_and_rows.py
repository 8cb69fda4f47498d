"""Input files by name, their rows, and how they are cut into parts; no worker runs."""

import json
import os
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from vlserve.batch import parts, rows
from vlserve.batch.parts import FIRST_ROWS, MOST_ROWS, ParquetPart, TextPart, cut
from vlserve.batch.rows import read_lines
from vlserve.batch.sources import Kind, find_sources, kind_of
from vlserve.errors import DataError
from vlserve_worker import storage
from vlserve_worker.storage import ObjectPath, path_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", Kind.JSONL),
        ("a.JSONL", Kind.JSONL),
        ("a.ndjson.gz", Kind.JSONL),
        ("a.csv.zst", Kind.CSV),
        ("a.tsv", Kind.TSV),
        ("a.b.parquet", Kind.PARQUET),
        ("a.tar", Kind.TAR),
    ],
)
def test_a_files_name_says_its_kind(name: str, kind: Kind) -> None:
    assert kind_of(Path(name)) is kind


@pytest.mark.parametrize("name", ["a.tar.gz", "a.parquet.gz", "a.txt", "a", "a.gz", "a.json"])
def test_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"unpack it|is of no kind that is read"):
        kind_of(Path(name))


def test_patterns_give_each_file_once_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    everything = f"{tmp_path}/**/*.jsonl"
    sources = find_sources([str(tmp_path / "b.jsonl"), everything])
    assert [source.path.name for source in sources] == ["b.jsonl", "a.jsonl", "c.jsonl"]
    with pytest.raises(DataError, match=r"--input .*\.csv: there is no such file or folder"):
        find_sources([f"{tmp_path}/*.csv"])


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find_sources([str(tmp_path / "pipe.jsonl")])


def lines_of(file: Path) -> list[dict[str, object]]:
    (source,) = find_sources([str(file)])
    return [json.loads(line) for line in read_lines(source)]


def test_csv_rows_have_the_first_lines_names(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffid,text\n1,"two\nlines, ""quoted"""\n\n2\n3,\n'.encode())
    assert lines_of(file) == [
        {"columns": {"id": "1", "text": 'two\nlines, "quoted"'}},
        {"error": "the row has 1 columns, and the first line 2 (line 5)"},
        {"columns": {"id": "3", "text": ""}},
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"id,id\n1,2\n", "two columns have the same name"),
        (b'id,text\n1,"never closed\n', "cannot be read"),
        ("id,text\n1,猫咪\n".encode("gb18030"), "cannot be read"),
    ],
)
def test_a_csv_file_whose_rows_cannot_be_told_apart_is_refused(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=why):
        lines_of(tmp_path / "a.csv")


def test_a_line_that_is_too_long_is_its_rows_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 100)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a" * 500}) + "\n" + '{"text": "b"}\n', encoding="utf-8")
    assert lines_of(file) == [{"error": "the line has more than 100 bytes"}, {"text": "b"}]


def test_members_of_a_shard_are_grouped_by_key(tmp_path: Path) -> None:
    members = {
        "s/1.jpg": b"one",
        "s/1.json": b'{"text": "a", "n": 3}',
        "s/readme": b"no member of a row",
        "s/2.png": b"two",
        "s/2.cls": b"4",
        "s/3.txt": b"x" * (rows.MAX_MEMBER_BYTES + 1),
        "s/4.json": b"[]",
        "s/5.json": b'{"text": ' + b"[" * 100_000,
        "s/6.json": b'{"text": "\\ud800"}',
    }
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            shard.addfile(entry, BytesIO(content))
    first, second, large, wrong, deep, half = lines_of(tmp_path / "a.tar")
    assert first["columns"] == {"id": "s/1", "text": "a", "n": 3}
    path, offset, size = first["files"]["image"]  # type: ignore[index]
    assert Path(path).read_bytes()[offset : offset + size] == b"one"
    assert second["columns"] == {"id": "s/2", "label": "4"}
    assert large["error"] == f"s/3.txt has over {rows.MAX_MEMBER_BYTES} bytes"
    assert wrong == {
        "columns": {"id": "s/4"},
        "error": "s/4.json cannot be read: it is no JSON object",
    }
    assert str(deep["error"]).startswith("s/5.json cannot be read: maximum recursion depth")
    assert half["columns"] == {"id": "s/6", "text": "\ud800"}


def test_parts_grow_and_count_rows_over_all_files(tmp_path: Path) -> None:
    for name, count in (("a", 5000), ("b", 10)):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * count, encoding="utf-8")
    sources = find_sources([f"{tmp_path}/*.jsonl"])
    pieces = list(cut(sources))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    sizes = [len(piece.lines) for piece in pieces if isinstance(piece, TextPart)]
    assert sizes[:3] == [FIRST_ROWS, 2 * FIRST_ROWS, 4 * FIRST_ROWS]
    assert max(sizes) <= MOST_ROWS and sum(sizes) == 5010
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    assert [piece.first_row for piece in pieces] == starts
    assert list(cut(sources)) == pieces


def test_a_row_group_of_images_is_hardly_cut_and_one_of_numbers_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SKIPPED_BYTES", 2000)
    images = pyarrow.table({"image": [os.urandom(2000) for _ in range(3000)]})
    numbers = pyarrow.table({"n": list(range(9000))})
    for name, table in (("images", images), ("numbers", numbers)):
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    spans = {}
    for name in ("images", "numbers"):
        pieces = cut(find_sources([f"{tmp_path}/{name}.parquet"]))
        spans[name] = [(p.start, p.count) for p in pieces if isinstance(p, ParquetPart)]
    first = [(0, 32), (32, 64), (96, 128), (224, 256), (480, 512)]
    assert spans["images"] == [*first, (992, 2008)]
    assert spans["numbers"][:2] == [(0, FIRST_ROWS), (FIRST_ROWS, 2 * FIRST_ROWS)]
    assert sum(count for _, count in spans["numbers"]) == 9000


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        list(cut(find_sources([str(tmp_path / "a.parquet")])))


def test_each_bucket_is_asked_in_its_own_region(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []

    class Storages:
        @staticmethod
        def from_uri(address: str) -> tuple[object, str]:
            addresses.append(address)
            return object(), ""

    monkeypatch.setattr("pyarrow.fs.FileSystem", Storages)
    monkeypatch.setattr(storage, "_file_system", cache(storage._file_system.__wrapped__))
    for address in ("s3://photos/a.jpg", "s3://covers/b.jpg?region=eu-west-1", "s3://photos/c.jpg"):
        assert isinstance(path := path_of(address), ObjectPath)
        assert path.file_system is not None
    assert addresses == ["s3://photos/key", "s3://covers/key?region=eu-west-1"]
