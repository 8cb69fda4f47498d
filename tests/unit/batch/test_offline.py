"""An archive's own code answers, in a process of its own."""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlserve.batch.offline import answer_offline
from vlserve.exporter.echo import VOCABULARY, pack_echo
from vlserve.exporter.pack import write_zip
from vlserve.runtime.archive import unpack_archive, verify_archive
from vlserve.runtime.errors import ArchiveTampered
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import Request


def test_lines_come_back_in_order_each_with_its_own_answer_or_error(
    echo_archive: Path, echo_folder: Path, tmp_path: Path
) -> None:
    probes = verify_archive(echo_archive).probes
    image = tmp_path / "cover"
    image.write_bytes(base64.b64decode(probes[0].fields["image"]))
    items: list[dict[str, Any]] = [
        {"id": n, "fields": probe.fields} for n, probe in enumerate(probes)
    ]
    items += [
        {"id": "path", "fields": {"image_path": str(image), "text": probes[0].fields["text"]}},
        {"id": "absent", "fields": {"image_path": str(tmp_path / "none"), "text": ""}},
        {"id": "odd path", "fields": {"image_path": ["x"], "text": ""}},
        {"id": "field", "fields": {"text": "a"}},
        {"id": "猫", "fields": probes[1].fields},
    ]
    lines = list(answer_offline(echo_archive, items, batch_size=4))
    assert [line["id"] for line in lines] == [item["id"] for item in items]
    pipeline = open_folder(echo_folder)
    for item, line in zip(items[: len(probes)], lines, strict=False):
        assert line["answer"] == pipeline.run([Request(item["fields"])]).answers[0]
    assert lines[len(probes)]["answer"] == lines[0]["answer"]
    codes = [line["error"]["code"] for line in lines[len(probes) + 1 : -1]]
    assert codes == ["image_unreadable", "body_unreadable", "field_invalid"]
    assert lines[-1]["answer"] == lines[1]["answer"]


def test_no_items_no_lines(echo_archive: Path) -> None:
    assert list(answer_offline(echo_archive, [])) == []


def test_an_item_whose_code_dies_has_an_error_of_its_own(tmp_path: Path) -> None:
    archive = pack_echo(tmp_path, "m", 1, crash_on_id=VOCABULARY["坏"])
    fields = verify_archive(archive).probes[0].fields
    texts = ("a", "坏", "b")
    items = [{"id": text, "fields": fields | {"text": text}} for text in texts]
    lines = list(answer_offline(archive, items, 1))
    assert [line["id"] for line in lines] == list(texts)
    assert lines[1]["error"]["code"] == "worker_killed"
    assert "answer" in lines[0] and "answer" in lines[2]


def test_a_tampered_archive_answers_nothing(echo_archive: Path, tmp_path: Path) -> None:
    unpack_archive(echo_archive, tmp_path / "x")
    (tmp_path / "x/graphs/model.echo.json").write_text("{}", encoding="utf-8")
    members = {
        file.relative_to(tmp_path / "x").as_posix(): file
        for file in (tmp_path / "x").rglob("*")
        if file.is_file()
    }
    write_zip(tmp_path / "echo-3.mar", members)
    with pytest.raises(ArchiveTampered):
        next(answer_offline(tmp_path / "echo-3.mar", []))


def test_installed_code_refuses_to_pose_as_the_archives(echo_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vlserve_worker.batch", str(echo_folder), '{"threads": 1}', "1"],
        input=b"",
        capture_output=True,
    )
    assert result.returncode != 0
    assert b"not from the archive" in result.stderr
