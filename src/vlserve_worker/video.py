"""Cover frames of videos, decoded by a process of their own (video_decoder.py).

Knows nothing of vlserve, so that a worker can turn a video into an image before an archive's frozen
code, which may be older than this, sees the request.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

ENDINGS = ("mp4", "m4v", "mkv", "webm", "mov", "avi")
"""Of the names of video files."""
UNREADABLE, TOO_LARGE, TOO_COMPLEX = "video_unreadable", "video_too_large", "video_too_complex"
UNSUPPORTED = "video_unsupported"
"""Codes; vlserve.runtime.errors has them too."""
WHERE_FROM = "videos need the extra `video`, which brings av: pip install 'vlserve[video]'"

_PROGRAM = Path(__file__).with_name("video_decoder.py")


class VideoError(ValueError):
    """A video that gives no frame; ``code`` is one of the four above."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class FrameChoice:
    """Which frame. ``at``: its number from 0, or a second of the video, by ``kind``."""

    kind: Literal["first", "clear", "frame", "second"] = "first"
    at: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "FrameChoice":
        """Read ``first``, ``clear``, ``frame:N`` or ``second:S``. ValueError for anything else."""
        kind, _, at = text.partition(":")
        match kind:
            case "first" | "clear" if not at:
                return cls(kind)
            case "frame" if at.isascii() and at.isdigit() and len(at) < 10:
                return cls(kind, int(at))
            case "second":
                with suppress(ValueError):
                    second = float(at)
                    if math.isfinite(second) and second >= 0:
                        return cls(kind, second)
        raise ValueError(f"{text!r} is not first, clear, frame:N or second:S")


@dataclass(frozen=True)
class VideoLimits:
    """What one video may cost. ``max_bytes`` is of a video that comes as bytes; a file is read
    where it lies. ``memory_bytes``: beyond what the decoder has without a video."""

    max_bytes: int = 16 * 1024**2
    max_pixels: int = 36_000_000
    memory_bytes: int = 1024**3
    seconds: float = 20.0


@dataclass(frozen=True)
class Place:
    """Where a video's bytes lie: a file, or ``size`` bytes of one; -1: up to its end."""

    path: Path
    offset: int = 0
    size: int = -1


@dataclass(frozen=True)
class Frame:
    """A frame as a JPEG. ``second``: of the video, where it says so; ``clear``: neither black nor
    blurred, None where that was not asked."""

    jpeg: bytes
    width: int
    height: int
    second: float | None
    clear: bool | None


class FrameReader:
    """Reads frames by one process, which starts at the first video and is replaced when a video
    ends it. Not thread-safe."""

    def __init__(self, limits: VideoLimits | None = None) -> None:
        self.limits = limits or VideoLimits()
        self._decoder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(
        self, video: Place | bytes, choice: FrameChoice, seconds: float | None = None
    ) -> Frame:
        """Return the chosen frame, upright.

        Args:
            video: Where it lies, or its bytes.
            choice: Which frame.
            seconds: How long it may take, where that is less than the limits say.

        Raises:
            VideoError: It cannot be read or is over a limit, or videos are not installed.
        """
        data = b"" if isinstance(video, Place) else video
        if not isinstance(video, Place):
            self._check_bytes(data)
        most_s = min(self.limits.seconds, seconds or math.inf)
        request = {
            "kind": choice.kind,
            "at": choice.at,
            "max_pixels": self.limits.max_pixels,
            "seconds": most_s,
            "bytes": len(data),
            "place": _as_json(video) if isinstance(video, Place) else None,
        }
        decoder = self._started()
        try:
            answer, jpeg = _ask(decoder, request, data)
        except (EOFError, OSError):
            raise self._ended(decoder, most_s) from None
        if "code" in answer:
            raise VideoError(answer["code"], answer["message"])
        about = {name: answer[name] for name in ("width", "height", "second", "clear")}
        return Frame(jpeg, **about)

    def close(self) -> None:
        """End the process."""
        if self._decoder is not None:
            _end(self._decoder)
            self._decoder = None

    def _check_bytes(self, data: bytes) -> None:
        if not data:
            raise VideoError(UNREADABLE, "the video has no bytes")
        if len(data) > self.limits.max_bytes:
            raise VideoError(
                TOO_LARGE,
                f"the video has {len(data)} bytes, the limit is {self.limits.max_bytes}",
            )

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._decoder is not None and self._decoder.poll() is None:
            return self._decoder
        self.close()
        if find_spec("av") is None:
            raise VideoError(UNSUPPORTED, WHERE_FROM)
        self._decoder = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), str(self.limits.memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._decoder.stdout is not None
        if not self._decoder.stdout.readline():
            code = self._decoder.wait()
            raise VideoError(UNSUPPORTED, f"the decoder of videos does not start: exit code {code}")
        return self._decoder

    def _ended(self, decoder: "subprocess.Popen[bytes]", seconds: float) -> VideoError:
        code = decoder.wait()
        self.close()
        if code == -signal.SIGALRM:
            return VideoError(TOO_COMPLEX, f"the video takes longer than {seconds:g} s to read")
        with suppress(ValueError):
            return VideoError(
                UNREADABLE, f"the video ended its decoder by {signal.Signals(-code).name}"
            )
        return VideoError(UNREADABLE, f"the video ended its decoder with exit code {code}")


def _as_json(place: Place) -> Mapping[str, Any]:
    return {"path": str(place.path), "offset": place.offset, "size": place.size}


def _ask(
    decoder: "subprocess.Popen[bytes]", request: Mapping[str, Any], data: bytes
) -> tuple[Mapping[str, Any], bytes]:
    """Ask the decoder. EOFError or OSError where the decoder ends."""
    assert decoder.stdin is not None and decoder.stdout is not None
    decoder.stdin.write(json.dumps(request).encode() + b"\n" + data)
    decoder.stdin.flush()
    line = decoder.stdout.readline()
    if not line:
        raise EOFError
    answer = json.loads(line)
    jpeg = decoder.stdout.read(answer.get("bytes", 0))
    if len(jpeg) < answer.get("bytes", 0):
        raise EOFError
    return answer, jpeg


def _end(decoder: "subprocess.Popen[bytes]") -> None:
    decoder.kill()
    for pipe in (decoder.stdin, decoder.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    decoder.wait()
