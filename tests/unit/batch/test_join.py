"""All parts of a job as one file: which files are parts, and in which order."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from vlserve.batch.join import join_parts
from vlserve.errors import BatchError

NUMBERS = (0, 2, 10_000, 99_999, 100_000, 100_001, 1_000_000)


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in NUMBERS:
        (tmp_path / f"part-{number:05}.jsonl").write_text(f"{number}\n", encoding="utf-8")
        table = pyarrow.table({"row": [number]})
        pyarrow.parquet.write_table(table, tmp_path / f"part-{number:05}.parquet")
    joined_file = tmp_path / "all.jsonl"
    join_parts(tmp_path, "jsonl", joined_file)
    assert [int(line) for line in joined_file.read_bytes().splitlines()] == list(NUMBERS)
    join_parts(tmp_path, "parquet", tmp_path / "all.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet")
    assert table.column("row").to_pylist() == list(NUMBERS)


@pytest.mark.parametrize(
    "name", ["part-all.jsonl", "part-7.jsonl", "part-000001.jsonl", "part-00001.old.jsonl"]
)
def test_a_file_that_is_called_like_a_part_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "part-00000.jsonl").write_text("0\n", encoding="utf-8")
    for _ in range(2):
        join_parts(tmp_path, "jsonl", tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == "0\n"


def test_a_part_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "part-00000.jsonl").write_text("0\n", encoding="utf-8")
    (tmp_path / "part-00001.jsonl").write_text("1\n", encoding="utf-8")
    with pytest.raises(BatchError, match="is a part of the job: choose another --joined"):
        join_parts(tmp_path, "jsonl", tmp_path / "part-00001.jsonl")
    assert (tmp_path / "part-00001.jsonl").read_text(encoding="utf-8") == "1\n"
