"""Covers and titles from a JSON-lines file, encoded once as the multipart bodies to post."""

import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from urllib3.filepost import encode_multipart_formdata

from vlserve.errors import DataError

MAX_BYTES = 256 * 1024 * 1024
"""All bodies lie in memory; what a longer file holds beyond this is not sent."""


@dataclass(frozen=True)
class Post:
    """One request body, ready to send."""

    body: bytes
    content_type: str


def _post(file: Path, number: int, line: str) -> Post:
    try:
        entry = json.loads(line)
        image, text = Path(entry["img"]), entry["text"]
        if not isinstance(text, str):
            raise TypeError("text is not a string")
        payload = (file.parent / image).read_bytes()
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file}, line {number}: {reason}") from error
    kind = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    body, content_type = encode_multipart_formdata(
        {"image": (image.name, payload, kind), "text": text}
    )
    return Post(body, content_type)


def _posts(file: Path) -> Iterator[Post]:
    held = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            post = _post(file, number, line)
            held += len(post.body)
            yield post
            if held > MAX_BYTES:
                return


def read_posts(file: Path) -> tuple[Post, ...]:
    """Every ``{"img", "text"}`` line as a body; DataError names the line that is not one."""
    try:
        posts = tuple(_posts(file))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}") from error
    if not posts:
        raise DataError(f"{file} has no line with an image and a text")
    return posts
