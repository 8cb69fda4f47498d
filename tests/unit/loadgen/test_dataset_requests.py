import json
from email import message_from_bytes
from pathlib import Path

import pytest

from vlserve.errors import DataError
from vlserve.loadgen import dataset_requests
from vlserve.loadgen.dataset_requests import read_dataset


def write(folder: Path, *lines: str) -> Path:
    (folder / "a.jpg").write_bytes(b"\xff\xd8 not really")
    file = folder / "data.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_line_becomes_a_multipart_form(tmp_path: Path) -> None:
    line = json.dumps({"id": "1", "img": "a.jpg", "text": "标题 🔥"}, ensure_ascii=False)
    (body,) = read_dataset(write(tmp_path, line, ""))
    head = f"Content-Type: {body.content_type}\r\n\r\n".encode()
    image, text = message_from_bytes(head + body.body).get_payload()
    assert image.get_param("name", header="content-disposition") == "image"
    assert image.get_content_type() == "image/jpeg"
    assert image.get_payload(decode=True) == b"\xff\xd8 not really"
    assert text.get_param("name", header="content-disposition") == "text"
    assert text.get_payload(decode=True).decode() == "标题 🔥"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ('{"img": "a.jpg"}', "no field 'text'"),
        ('{"img": "a.jpg", "text": 3}', "text is not a string"),
        ('{"img": "b.jpg", "text": "x"}', "No such file"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    good = '{"img": "a.jpg", "text": "x"}'
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        read_dataset(write(tmp_path, good, line))


def test_nothing_to_send_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line"):
        read_dataset(write(tmp_path, ""))
    with pytest.raises(DataError, match="cannot read"):
        read_dataset(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"img": "a.jpg", "text": "\xe9"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        read_dataset(tmp_path / "latin.jsonl")


def test_a_long_file_is_read_up_to_the_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, *['{"img": "a.jpg", "text": "x"}'] * 10)
    size = len(read_dataset(file)[0].body)
    monkeypatch.setattr(dataset_requests, "MAX_BYTES", 2 * size)
    assert len(read_dataset(file)) == 3
