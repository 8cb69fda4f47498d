"""The files of one part: what a careful run keeps of it when it ends in the middle of a line."""

from pathlib import Path

import pytest

from vlserve_worker.batch_parts import STATE, PartFiles


@pytest.fixture
def files(tmp_path: Path) -> PartFiles:
    (tmp_path / STATE / "careful").mkdir(parents=True)
    return PartFiles(tmp_path, 7, ".jsonl")


# as a full disk or a power cut leaves it; and with a row behind it, as earlier versions went on
@pytest.mark.parametrize("torn", [b'{"id": "c", "ro', b'{"id": "c", "ro{"id": "c", "row": 2}\n'])
def test_a_torn_line_ends_the_rows_and_more_are_added_after_it(
    files: PartFiles, tmp_path: Path, torn: bytes
) -> None:
    rows = [{"id": name, "row": number} for number, name in enumerate("abcd")]
    for row in rows[:2]:
        files.add_partial(row)
    with (tmp_path / STATE / "careful" / "00007.jsonl").open("ab") as file:
        file.write(torn)
    assert files.partial_rows() == rows[:2]
    for row in rows[2:]:
        files.add_partial(row)
    assert files.partial_rows() == rows
    assert files.partial_count() == len(rows)
