"""A row's video -> the image that the archive's code sees, in the worker of an offline job."""

from vlserve_worker.video import (
    UNREADABLE,
    FrameChoice,
    FrameReader,
    Place,
    VideoError,
    VideoLimits,
)

VIDEO, IMAGE = "video", "image"
LIMITS = VideoLimits(max_bytes=256 * 1024**2)
"""Of a video in a column; one that is a file is not read into memory."""


class Covers:
    """Reads the frames of one worker's videos."""

    def __init__(self, choice: FrameChoice, limits: VideoLimits = LIMITS) -> None:
        self._choice = choice
        self._reader = FrameReader(limits)

    def of(self, video: object) -> bytes:
        """Return the JPEG of a video: its place, or its bytes.

        Raises:
            VideoError: It gives no frame.
        """
        if not isinstance(video, Place | bytes):
            raise VideoError(UNREADABLE, f"video is no bytes, but {type(video).__name__}")
        return self._reader.read(video, self._choice).jpeg
