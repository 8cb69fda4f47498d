"""Jobs over videos: the chosen frame of each is its row's image."""

import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from support.batch_rows import output, write_jsonl
from support.drawn_videos import card, plain, write_video
from vlserve import extras
from vlserve.errors import ExtraMissing
from vlserve_worker.video import FrameChoice, FrameReader, Place

Run = Callable[..., Mapping[str, Any]]


def parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def test_a_videos_frame_is_its_rows_image(covers: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "b").mkdir(parents=True)
    colours = {"a": "red", "b/c": "blue"}
    for name, colour in colours.items():
        write_video(folder / f"{name}.mp4", [plain("black"), card(colour), card(colour)])
        (folder / f"{name}.txt").write_text(f"title {name}", encoding="utf-8")
    (folder / "d.mkv").write_bytes(b"no video")
    run(folder, frame="frame:1")
    videos = output(tmp_path / "out")
    assert [row["id"] for row in videos] == ["a", "b/c", "d"]
    assert videos[2]["error_code"] == "video_unreadable"

    rows: list[dict[str, Any]] = []
    with FrameReader() as reader:
        for name in colours:
            frame = reader.read(Place(folder / f"{name}.mp4"), FrameChoice("frame", 1))
            rows.append({"id": name, "image": frame.jpeg, "text": f"title {name}"})
    run(parquet(covers / "frames.parquet", rows), out=tmp_path / "images")
    assert [row["tags"] for row in output(tmp_path / "images")] == [v["tags"] for v in videos[:2]]

    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as members:
        for name in ("a.mp4", "a.txt"):
            members.add(folder / name, name)
    columns = [
        {"id": "bytes", "video": (folder / "a.mp4").read_bytes(), "image": None, "text": "title a"},
        {"id": "both", "video": b"x", "image": b"y", "text": ""},
        {"id": "empty", "video": b"", "text": ""},
    ]
    line = {"id": "path", "video_path": "clips/a.mp4", "text": "title a"}
    files = (
        shard,
        parquet(tmp_path / "v.parquet", columns),
        write_jsonl(tmp_path / "v.jsonl", [line]),
    )
    run(*files, out=tmp_path / "other", frame="frame:1")
    other = {row["id"]: row for row in output(tmp_path / "other")}
    assert other["a"]["tags"] == other["bytes"]["tags"] == other["path"]["tags"]
    assert other["a"]["tags"] == videos[0]["tags"]
    assert other["both"]["error_code"] == "field_invalid"
    assert other["empty"]["error_code"] == "video_unreadable"


def test_videos_without_their_extra_end_the_job(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'vlserve\[video\]'"):
        run(tmp_path / "clips")
