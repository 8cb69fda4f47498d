"""Videos to JPEG files and lines: one line a video, in order, whatever is in it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support.drawn_videos import SIZE, card, plain, write_video
from vlserve.data.frames import write_frames
from vlserve.errors import DataError
from vlserve_worker.video import FrameChoice


def test_each_video_gets_a_line_and_its_frame_a_file(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "b").mkdir(parents=True)
    for number in range(12):
        write_video(videos / "b" / f"{number:02}.mp4", [plain("black")] * 2 + [card("red")])
    write_video(videos / "a.avi", [card("blue")])
    write_video(videos / "a.mkv", [card("blue")])
    (videos / "b" / "05.mp4").write_bytes(b"no video")
    (videos / "notes.txt").write_text("no video", encoding="utf-8")
    (videos / ".hidden.mp4").write_text("no video", encoding="utf-8")
    result = write_frames([str(videos)], out, FrameChoice("clear"), workers=2)
    lines = [json.loads(line) for line in result.output.read_bytes().splitlines()]
    ids = ["a.avi", "a.mkv", *(f"b/{number:02}" for number in range(12))]
    assert [line["id"] for line in lines] == ids
    assert (result.videos, dict(result.errors)) == (14, {"video_unreadable": 1})
    failure = lines.pop(ids.index("b/05"))
    assert failure["error_code"] == "video_unreadable"
    assert "img" not in failure
    for line in lines:
        with Image.open(out / line["img"]) as image:
            assert image.size == (line["width"], line["height"]) == SIZE
        assert line["clear"] is True
        assert line["second"] == (0.2 if line["id"].startswith("b") else 0.0)


def test_what_names_no_video_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="there is no such file or folder"):
        write_frames([f"{tmp_path}/*.mp4"], out, FrameChoice(), workers=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file ending in mp4, m4v"):
        write_frames([str(tmp_path / "empty")], out, FrameChoice(), workers=1)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").touch()
    with pytest.raises(DataError, match="have the same id, a"):
        write_frames([str(tmp_path / "one"), str(tmp_path / "two")], out, FrameChoice(), workers=1)
    assert not (out / "frames.jsonl").exists() and not (out / "images").exists()


def test_a_video_that_has_gone_is_its_lines_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: object) -> None:
        raise OSError(24, "Too many open files")

    write_video(tmp_path / "a.mp4", [card("blue")])
    monkeypatch.setattr("vlserve_worker.video.FrameReader.read", no_process)
    result = write_frames([str(tmp_path / "a.mp4")], tmp_path / "out", FrameChoice(), workers=1)
    (line,) = map(json.loads, result.output.read_bytes().splitlines())
    assert line["error_code"] == "video_unreadable" and "Too many open files" in str(line)
