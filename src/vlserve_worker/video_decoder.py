"""The program that decodes strangers' videos: one cover frame of each, as a JPEG.

``python -P video_decoder.py MEMORY_BYTES``. Requests come on standard input, each a line of JSON
and, where it says ``bytes``, so many bytes of a video; an answer is a line of JSON and, where it
says ``bytes``, the JPEG. It ends when standard input does. It stands alone and imports nothing of
ours, so that any worker can start it by its path; `vlserve_worker.video` is its other side.

A hostile file ends this process alone: it may take so much memory, and so long (SIGALRM ends it).
Containers are opened by these formats only, since others, such as playlists, name further files.
"""

import errno
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from PIL import Image

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
UNREADABLE, TOO_LARGE, TOO_COMPLEX = "video_unreadable", "video_too_large", "video_too_complex"
JPEG_QUALITY = 95

JUDGED_WIDTH = 320
"""Pixels of the small copy by which a frame is judged."""
JUDGED_EVERY_S, JUDGED_WITHIN_S = 0.2, 20.0
"""Of the video: how far frames that are judged lie apart, and where the search ends."""
BLACK_LEVEL, BLACK_SHARE = 0.1, 0.98
"""A frame is black where this share of its pixels is darker than this part of white: the values of
FFmpeg's filter blackdetect."""
BLURRED_BELOW = 20.0
"""Variance of the Laplacian of grey levels 0 to 255 (Pech-Pacheco et al., Diatom autofocusing in
brightfield microscopy, ICPR 2000); also a frame of one colour has less."""


class Refused(Exception):
    """A video that gives no frame; ``code`` as rows and answers have it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Chosen:
    """A frame of a video. ``clear``: neither black nor blurred; None where that was not asked."""

    frame: "VideoFrame"
    clear: bool | None = None


class Window(io.RawIOBase):
    """A piece of a file as a file of its own: a member of a tar shard."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is no regular file")  # to open a pipe may never end
        self._file = Path(path).open("rb")  # noqa: SIM115  # closed by `close`
        self._offset = offset
        full_size = os.fstat(self._file.fileno()).st_size - offset
        self._size = full_size if size < 0 else min(size, full_size)
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        return self._file.seek(self._offset + max(0, start + offset)) - self._offset

    def tell(self) -> int:
        return self._file.tell() - self._offset

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._size - self.tell())
        return self._file.read(rest if size < 0 else min(size, rest))

    def close(self) -> None:
        self._file.close()
        super().close()


def cover_of(request: Mapping[str, Any], data: bytes) -> tuple[Mapping[str, Any], bytes]:
    """Return what is told of a video's frame, and the frame as a JPEG.

    Raises:
        Refused: It cannot be read, or is over a limit.
    """
    import av

    try:
        file: Any = io.BytesIO(data) if data else Window(**request["place"])
        with file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            choice = _chosen(container, request["kind"], request["at"], request["max_pixels"])
            image = upright(choice.frame)
    except (MemoryError, OSError, ValueError, EOFError) as error:  # PyAV's errors are of these
        raise _refused(error) from error
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    second = choice.frame.time
    about = {
        "width": image.width,
        "height": image.height,
        "second": None if second is None else round(second, 3),
        "clear": choice.clear,
    }
    return about, jpeg.getvalue()


def _refused(error: Exception) -> Refused:
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number in (errno.ENOMEM, errno.EAGAIN):  # or of a thread
        return Refused(TOO_COMPLEX, "the video takes more memory than is allowed")
    why = getattr(error, "strerror", None) or str(error)
    if number == errno.EINVAL:
        why = "it is no mp4, mov, mkv, webm or avi file"
    return Refused(UNREADABLE, f"the video cannot be read: {why}")


def _chosen(container: "InputContainer", kind: str, at: float, max_pixels: int) -> Chosen:
    stream = container.streams.best("video")
    if stream is None:
        raise Refused(UNREADABLE, "the file has no video stream")
    codec = stream.codec_context
    if codec.width * codec.height > max_pixels:
        size = f"{codec.width} x {codec.height}"
        raise Refused(TOO_LARGE, f"the video has {size} pixels, the limit is {max_pixels} in all")
    codec.options = {**codec.options, "max_pixels": str(max_pixels)}  # also where they change
    codec.thread_count = 1
    if kind == "second" and at > 0:
        start = stream.start_time or 0
        with suppress(OSError, ValueError):  # of a file without an index: read from its beginning
            container.seek(start + int(at / (stream.time_base or 1)), stream=stream)
    return choose(_frames(container, stream), kind, at)


def _frames(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    """Yield every frame that can be decoded: a damaged packet gives none, and the next ones may."""
    from av.error import InvalidDataError

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except InvalidDataError:
            continue


def choose(frames: Iterable["VideoFrame"], kind: str, at: float) -> Chosen:
    """Return the first frame; the first clear one; frame ``at``, from 0; or the one that is shown
    at second ``at``. ``kind``: first, clear, frame or second. Refused where there is none."""
    match kind:
        case "clear":
            return _first_clear(frames)
        case "frame":
            return _numbered(frames, int(at))
        case "second":
            return _shown_at(frames, at)
    for frame in frames:
        return Chosen(frame)
    raise Refused(UNREADABLE, "the video has no frame")


def _numbered(frames: Iterable["VideoFrame"], number: int) -> Chosen:
    count = 0
    for count, frame in enumerate(frames, start=1):
        if count > number:
            return Chosen(frame)
    raise Refused(UNREADABLE, f"the video has {count} frames, so no frame {number} (from 0)")


def _shown_at(frames: Iterable["VideoFrame"], second: float) -> Chosen:
    frame_before: VideoFrame | None = None
    for frame in frames:
        if frame_before is not None and (frame.time or 0.0) > second:
            return Chosen(frame_before)
        frame_before = frame
    if frame_before is None:
        raise Refused(UNREADABLE, f"the video has no frame at second {second:g}")
    ends = (frame_before.time or 0.0) + _duration(frame_before)
    if second > ends:
        raise Refused(UNREADABLE, f"the video ends at second {ends:.3f}, before second {second:g}")
    return Chosen(frame_before)


def _duration(frame: "VideoFrame") -> float:
    return float((frame.duration or 0) * (frame.time_base or 0))


def _first_clear(frames: Iterable["VideoFrame"]) -> Chosen:
    """Where none is clear: the sharpest of those that are not black, else the first."""
    best: VideoFrame | None = None
    best_sharpness = -1.0
    for frame in _judged(frames):
        grey = _small_grey(frame)
        sharpness = -0.5 if _is_black(grey) else sharpness_of(grey)
        if sharpness >= BLURRED_BELOW:
            return Chosen(frame, clear=True)
        if sharpness > best_sharpness:
            best, best_sharpness = frame, sharpness
    if best is None:
        raise Refused(UNREADABLE, "the video has no frame")
    return Chosen(best, clear=False)


def _judged(frames: Iterable["VideoFrame"]) -> Iterator["VideoFrame"]:
    next_at: float | None = None
    for number, frame in enumerate(frames):
        second = number * 0.04 if frame.time is None else frame.time
        if next_at is not None and second < next_at:
            continue
        if next_at is not None and second > JUDGED_WITHIN_S:
            return
        next_at = second + JUDGED_EVERY_S - 1e-6
        yield frame


def _small_grey(frame: "VideoFrame") -> Any:
    """Return a grey picture, float32 (height, width) of 0 to 255."""
    width = min(JUDGED_WIDTH, frame.width)
    height = max(3, frame.height * width // frame.width)
    return frame.reformat(width=max(3, width), height=height, format="rgb24").to_ndarray().mean(2)


def _is_black(grey: Any) -> bool:
    return float((grey < BLACK_LEVEL * 255).mean()) >= BLACK_SHARE


def sharpness_of(grey: Any) -> float:
    """Return the variance of the Laplacian of grey levels (height, width)."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())


def upright(frame: "VideoFrame") -> "Image.Image":
    """Return a frame as its display matrix says that it is shown; quarter turns lose nothing."""
    image: Image.Image = frame.to_image()
    angle = round(frame.rotation) % 360  # counterclockwise, as Pillow turns
    return image.rotate(angle, expand=True) if angle else image


def _limit_memory(more: int) -> None:
    """Let the process take ``more`` bytes than it has now, and leave no core dump."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    size = int(status.partition("VmSize:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    for line in requests:
        request = json.loads(line)
        data = requests.read(request["bytes"])
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])  # its end ends the process
        jpeg = b""
        try:
            about, jpeg = cover_of(request, data)
            answer = {**about, "bytes": len(jpeg)}
        except Refused as error:
            answer = {"code": error.code, "message": str(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n" + jpeg)
        answers.flush()


def main() -> None:
    """Run the decoder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with who started it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not disturb the answers
    import av.logging
    import numpy  # noqa: F401  # before the limit of memory, as all that follows needs it
    from PIL import JpegImagePlugin  # noqa: F401

    av.logging.set_level(av.logging.PANIC)
    _limit_memory(int(sys.argv[1]))
    answers.write(b"{}\n")
    answers.flush()
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
