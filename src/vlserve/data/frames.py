"""Videos -> cover frames as JPEG files, and a line of JSON for each video."""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from vlserve.data.data_files import write_object, written_whole
from vlserve.errors import DataError
from vlserve.extras import require_extras
from vlserve_worker.video import (
    ENDINGS,
    UNREADABLE,
    Frame,
    FrameChoice,
    FrameReader,
    Place,
    VideoError,
)

LINES, IMAGES = "frames.jsonl", "images"
_AHEAD = 4
"""Videos for each worker that are begun before the oldest is written."""
_SHOW_EVERY = 100


@dataclass(frozen=True)
class Video:
    """A file, and the id of its line: its path below the input, without its ending."""

    id: str
    path: Path


@dataclass
class Framed:
    """What became of the videos. ``errors``: how many by code."""

    output: Path
    videos: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def write_frames(
    inputs: Sequence[str],
    out: Path,
    choice: FrameChoice,
    workers: int,
    show: Callable[[str], None] = lambda line: None,
) -> Framed:
    """Write OUT/images/ID.jpg of each video, and OUT/frames.jsonl with a line for each, in the
    order of their names: ``id``, ``img``, ``video``, ``width``, ``height``, ``second``; of one
    without a readable frame ``id``, ``video``, ``error_code`` and ``error_message``.

    Args:
        inputs: Files, folders, whose files with a video's ending count, and globs.
        choice: Which frame.
        workers: How many are decoded at once, each by a process of its own.

    Raises:
        DataError: An input names nothing, or two videos have one id.
        ExtraMissing: PyAV is not installed.
    """
    require_extras("video")
    result, start = Framed(out / LINES), time.monotonic()
    videos = list(_each_once(video for pattern in inputs for video in find_videos(pattern)))
    with written_whole(result.output) as lines, Frames(choice, workers) as frames:
        for video, frame in frames.of(videos):
            write_object(lines, _line(video, frame, out))
            result.videos += 1
            if isinstance(frame, VideoError):
                result.errors[frame.code] += 1
            if result.videos % _SHOW_EVERY == 0:
                show(f"{result.videos} videos, {result.errors.total()} without a frame")
        if not result.videos:
            raise DataError(f"{', '.join(inputs)}: there is no file ending in {', '.join(ENDINGS)}")
    result.seconds = round(time.monotonic() - start, 3)
    return result


def find_videos(pattern: str) -> Iterator[Video]:
    """Yield the videos that a path or glob names, in the order of their names.

    Raises:
        DataError: There is no such file or folder.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob(pattern))]  # noqa: PTH207  # relative and absolute ones
    if not paths:
        raise DataError(f"--input {pattern}: there is no such file or folder")
    for path in paths:
        yield from _in_folder(path) if path.is_dir() else [Video(path.stem, path)]


def _in_folder(top: Path) -> Iterator[Video]:
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in sorted(files) if _is_video(name)]
        stems = Counter(Path(name).stem for name in names)
        for name in names:
            path = Path(folder) / name
            below = path.relative_to(top)
            alone = stems[path.stem] == 1
            yield Video((below.with_suffix("") if alone else below).as_posix(), path)


def _is_video(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in ENDINGS


def _each_once(videos: Iterable[Video]) -> Iterator[Video]:
    paths: dict[str, Path] = {}
    for video in videos:
        first = paths.setdefault(video.id, video.path)
        if first is not video.path:
            raise DataError(
                f"{video.path} and {first} have the same id, {video.id}: convert them into folders "
                "of their own"
            )
        yield video


class Frames:
    """Decodes several videos at once, in order."""

    def __init__(self, choice: FrameChoice, workers: int) -> None:
        self._choice = choice
        self._workers = workers
        self._own = threading.local()
        self._readers: list[FrameReader] = []
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def of(self, videos: Iterable[Video]) -> Iterator[tuple[Video, Frame | VideoError]]:
        """Yield each video with its frame, or why it has none."""
        queue: deque[tuple[Video, Future[Frame | VideoError]]] = deque()
        for video in videos:
            queue.append((video, self._pool.submit(self._read, video)))
            if len(queue) >= _AHEAD * self._workers:
                first, frame = queue.popleft()
                yield first, frame.result()
        for video_left, frame in queue:
            yield video_left, frame.result()

    def _read(self, video: Video) -> Frame | VideoError:
        reader: FrameReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = FrameReader()
            self._readers.append(reader)
        try:
            return reader.read(Place(video.path), self._choice)
        except VideoError as error:
            return error
        except OSError as error:  # the file has gone meanwhile, or no process can be started
            return VideoError(UNREADABLE, f"{video.path} cannot be read: {error.strerror or error}")


def _line(video: Video, frame: Frame | VideoError, out: Path) -> dict[str, Any]:
    about: dict[str, Any] = {"id": video.id, "video": str(video.path)}
    if isinstance(frame, VideoError):
        return about | {"error_code": frame.code, "error_message": frame.message}
    image = f"{IMAGES}/{video.id}.jpg"
    file = out / image
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(frame.jpeg)
    about |= {"img": image, "width": frame.width, "height": frame.height, "second": frame.second}
    return about if frame.clear is None else about | {"clear": frame.clear}
