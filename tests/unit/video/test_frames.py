"""The decoder of videos, as a process: which frame it gives, and how it ends on what is hostile."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.drawn_videos import CODECS, RATE, SIZE, card, plain, turn, write_video
from vlserve_worker import video
from vlserve_worker.video import Frame, FrameChoice, FrameReader, Place, VideoError, VideoLimits

CLEAR_FROM = 6
"""Frames of `CLIP` that are black, then of one grey, before red cards."""
CLIP = [plain("black")] * 3 + [plain("grey")] * 3 + [card("red")] * 4
RED, BLACK = (255, 0, 0), (0, 0, 0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", CLIP)


@pytest.fixture(scope="module")
def reader() -> Iterator[FrameReader]:
    with FrameReader() as reader:
        yield reader


def looks(frame: Frame, colour: tuple[int, int, int], at: tuple[int, int] = (50, 20)) -> bool:
    pixel = Image.open(io.BytesIO(frame.jpeg)).convert("RGB").getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(value - expected) < 40 for value, expected in zip(pixel, colour, strict=True))


def code_of(reader: FrameReader, source: Place | bytes, choice: str = "first") -> str:
    with pytest.raises(VideoError) as error:
        reader.read(source, FrameChoice.parse(choice))
    return error.value.code


@pytest.mark.parametrize("ending", CODECS)
def test_the_first_frame_comes_out_of_every_container(
    reader: FrameReader, tmp_path: Path, ending: str
) -> None:
    file = write_video(tmp_path / f"a{ending}", [card("red")] * 2)
    frame = reader.read(Place(file), FrameChoice())
    assert (frame.width, frame.height, frame.clear) == (*SIZE, None)
    assert looks(frame, RED)
    assert looks(frame, (255, 255, 255), (3, 3))


@pytest.mark.parametrize(
    ("choice", "second", "colour"),
    [
        ("first", 0.0, BLACK),
        ("clear", CLEAR_FROM / RATE, RED),
        ("frame:2", 0.2, BLACK),
        ("frame:7", 0.7, RED),
        ("second:0", 0.0, BLACK),
        ("second:0.68", 0.6, RED),
        ("second:0.95", 0.9, RED),
    ],
)
def test_the_chosen_frame_is_given(
    reader: FrameReader, clip: Path, choice: str, second: float, colour: tuple[int, int, int]
) -> None:
    for source in (Place(clip), clip.read_bytes()):
        frame = reader.read(source, FrameChoice.parse(choice))
        assert frame.second == second
        assert looks(frame, colour)
        assert frame.clear is (True if choice == "clear" else None)


def test_where_no_frame_is_clear_the_sharpest_that_is_not_black_is_given(
    reader: FrameReader, tmp_path: Path
) -> None:
    file = write_video(tmp_path / "a.mkv", [plain("black")] * 4 + [plain("red")] * 4)
    frame = reader.read(Place(file), FrameChoice("clear"))
    assert frame.clear is False
    assert looks(frame, RED)


@pytest.mark.parametrize("choice", ["frame:10", "second:1.5"])
def test_a_frame_beyond_the_end_is_refused(reader: FrameReader, clip: Path, choice: str) -> None:
    assert code_of(reader, Place(clip), choice) == video.UNREADABLE


def test_a_video_that_a_phone_turned_is_upright(reader: FrameReader, tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", [card("red")] * 2)
    turn(file)
    frame = reader.read(Place(file), FrameChoice())
    assert (frame.width, frame.height) == SIZE[::-1]
    assert looks(frame, (255, 255, 255), (SIZE[1] - 4, 3))  # which was the left upper corner
    assert looks(frame, RED, (3, 3))


def test_a_member_of_a_tar_shard_is_read_where_it_lies(
    reader: FrameReader, clip: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.add(clip, "clip.mp4")
    with tarfile.open(tmp_path / "a.tar") as shard:
        member = shard.getmember("clip.mp4")
        place = Place(tmp_path / "a.tar", member.offset_data, member.size)
    assert reader.read(place, FrameChoice("frame", 7)).second == 0.7


def test_what_is_no_video_is_refused_and_the_next_one_read(
    reader: FrameReader, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video at all " * 100, encoding="utf-8")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n", encoding="utf-8")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("text.mp4", "empty.mp4", "list.mp4", "cut.mp4", "absent.mp4", "pipe.mp4"):
        assert code_of(reader, Place(tmp_path / name)) == video.UNREADABLE, name
    assert code_of(reader, b"") == video.UNREADABLE
    assert reader.read(Place(clip), FrameChoice()).second == 0.0


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        (VideoLimits(max_pixels=5000), video.TOO_LARGE, "96 x 64 pixels, the limit is 5000"),
        (VideoLimits(max_bytes=1000), video.TOO_LARGE, "the limit is 1000"),
        (VideoLimits(memory_bytes=2**20), video.TOO_COMPLEX, "more memory than is allowed"),
        (VideoLimits(seconds=1e-6), video.TOO_COMPLEX, "longer than 1e-06 s"),
    ],
)
def test_a_video_over_a_limit_ends_alone(
    clip: Path, limits: VideoLimits, code: str, words: str
) -> None:
    with FrameReader(limits) as small:
        for _ in range(2):
            with pytest.raises(VideoError, match=words) as error:
                small.read(clip.read_bytes(), FrameChoice())
            assert error.value.code == code


def test_what_kills_the_decoder_is_its_own_error(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "decoder.py"
    program.write_text(
        "import os, sys\nos.write(1, b'{}\\n')\nsys.stdin.readline()\nos.kill(os.getpid(), 11)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(video, "_PROGRAM", program)
    with FrameReader() as reader, pytest.raises(VideoError, match="SIGSEGV") as error:
        reader.read(Place(clip), FrameChoice())
    assert error.value.code == video.UNREADABLE


def test_without_the_extra_it_says_what_brings_it(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with (
        FrameReader() as reader,
        pytest.raises(VideoError, match=r"pip install 'vlserve\[video\]'"),
    ):
        reader.read(Place(clip), FrameChoice())


@pytest.mark.parametrize(
    "words", ["", "last", "first:1", "frame", "frame:-1", "frame:1.5", "second:", "second:inf"]
)
def test_a_frame_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="is not first, clear, frame:N or second:S"):
        FrameChoice.parse(words)
