"""A request's video -> its first frame as the field ``image``, before the handler sees it.

So a served model takes videos whatever the age of its frozen code, and no handler decodes them.
"""

import base64
import binascii
import json
from collections.abc import MutableSequence
from typing import Any

from vlserve_worker.bodies import BodyRefused
from vlserve_worker.video import UNREADABLE, FrameChoice, FrameReader, VideoError, VideoLimits

VIDEO, IMAGE, BODY = "video", "image", "body"
LIMITS = VideoLimits(max_bytes=16 * 1024**2, memory_bytes=512 * 1024**2, seconds=5.0)
_FIRST = FrameChoice()


class VideoParts:
    """Turns the videos of one worker's requests into images."""

    def __init__(self, response_timeout_s: float | None, limits: VideoLimits = LIMITS) -> None:
        """``response_timeout_s``: after which TorchServe ends a worker; None where it does not."""
        self._timeout_s = response_timeout_s
        self._reader = FrameReader(limits)

    def to_images(self, request: dict[str, Any], share: int) -> None:
        """Put an image in the place of a video, in a request whose body is read.

        All videos of a batch together take at most half of the time that a worker has for it, and
        this one ``1 / share`` of that.

        Raises:
            VideoError: The video gives no frame.
            BodyRefused: There is an image beside it.
        """
        parameters: MutableSequence[dict[str, Any]] = request["parameters"]
        at = {parameter["name"]: place for place, parameter in enumerate(parameters)}
        seconds = None if self._timeout_s is None else self._timeout_s / 2 / share
        if VIDEO in at:
            if IMAGE in at:
                raise _both()
            jpeg = self._jpeg(bytes(parameters[at[VIDEO]]["value"]), seconds)
            parameters[at[VIDEO]] |= {"name": IMAGE, "value": bytearray(jpeg)}
        elif BODY in at and b'"video"' in parameters[at[BODY]]["value"]:
            body = parameters[at[BODY]]
            body["value"] = self._of_json(body["value"], seconds)

    def _of_json(self, body: bytearray, seconds: float | None) -> bytearray:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return body  # which the handler refuses in its own words
        if not isinstance(fields, dict) or VIDEO not in fields:
            return body
        if fields.get(IMAGE) is not None:
            raise _both()
        text = fields.pop(VIDEO)
        try:
            data = base64.b64decode(text, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise VideoError(UNREADABLE, f"video is not base64: {error}") from error
        fields[IMAGE] = base64.b64encode(self._jpeg(data, seconds)).decode()
        return bytearray(json.dumps(fields).encode())

    def _jpeg(self, data: bytes, seconds: float | None) -> bytes:
        return self._reader.read(data, _FIRST, seconds).jpeg


def _both() -> BodyRefused:
    return BodyRefused("send a video or an image, not both")
