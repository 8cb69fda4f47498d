"""JSON files beside a checkpoint: what is read, and what each refusal says."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlserve.errors import CheckpointMismatch, ExportError
from vlserve.exporter.export import _read_config
from vlserve.exporter.json_file import read_json
from vlserve.exporter.wordpiece import read_vocabulary
from vlserve.families.config_file import check_against_tensors, read_names


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    """Notepad and PowerShell write one."""
    file = tmp_path / "config.json"
    file.write_text('{"labels": ["猫"]}', encoding="utf-8-sig")
    assert _read_config(file) == read_names(file, "labels") == {"labels": ["猫"]}
    words = tmp_path / "vocab.txt"
    words.write_text("[PAD]\n猫\n", encoding="utf-8-sig")
    assert read_vocabulary(words) == ["[PAD]", "猫"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "it is not a regular file"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.write_bytes("{}".encode("utf-16")), "it is not UTF-8, at byte 0"),
        (lambda path: path.write_bytes(b"[" * 100_000), "it is nested too deeply"),
        (lambda path: path.write_bytes(b"{'a': 1}"), "Expecting property name"),
        (lambda path: path.write_bytes(b""), "it is an empty file"),
        (lambda path: path.write_bytes(b"{"), "Expecting property name"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ExportError, match=f"^labels cannot be read: .*{reason}"):
        read_json(tmp_path / "config.json", "labels")


def test_a_section_is_compared_by_the_fields_that_it_has() -> None:
    sizes = {"vision": {"hidden": 8, "layers": 2, "eps": 1e-6}, "embedding": 4}
    check_against_tensors({"vision": {"hidden": 8}, "task": "match"}, sizes)
    expected = (
        r"^vision: config\.json says {'layers': 3, 'depth': 3}, the checkpoint has {'layers': 2}$"
    )
    with pytest.raises(CheckpointMismatch, match=expected):
        check_against_tensors({"vision": {"hidden": 8, "layers": 3, "depth": 3}}, sizes)
    with pytest.raises(CheckpointMismatch, match=r"^embedding: config\.json says 5"):
        check_against_tensors({"embedding": 5}, sizes)
