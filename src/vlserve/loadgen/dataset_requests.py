"""Requests made of a dataset: its images and texts, encoded once as multipart bodies."""

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from urllib3.filepost import encode_multipart_formdata

from vlserve.errors import DataError
from vlserve.text_files import encoding_hint
from vlserve.training.json_lines import parse_object

MAX_BYTES = 256 * 1024 * 1024
"""All bodies are kept in memory; the lines of a longer file beyond this are not sent."""


@dataclass(frozen=True)
class RequestBody:
    """The encoded body of a request, with its Content-Type."""

    body: bytes
    content_type: str


def _encode(file: Path, number: int, line: bytes) -> RequestBody:
    try:
        entry = parse_object(line)
        image, text = Path(entry["img"]), entry["text"]
        if not isinstance(text, str):
            raise TypeError("text is not a string")
        content = (file.parent / image).read_bytes()
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{file}, line {number}: {reason}{encoding_hint(file)}") from error
    kind = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    body, content_type = encode_multipart_formdata(
        {"image": (image.name, content, kind), "text": text}
    )
    return RequestBody(body, content_type)


def _encode_lines(file: Path) -> Iterator[RequestBody]:
    size_bytes = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            body = _encode(file, number, line)
            size_bytes += len(body.body)
            yield body
            if size_bytes > MAX_BYTES:
                return


def read_dataset(file: Path) -> tuple[RequestBody, ...]:
    """Return a body for each ``{"img", "text"}`` line of ``file``; images are relative to it.

    DataError names the line that is not one, and is raised for a file without any.
    """
    try:
        bodies = tuple(_encode_lines(file))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not bodies:
        raise DataError(f"{file} has no line with an image and a text")
    return bodies
