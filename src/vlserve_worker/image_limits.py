"""What an image may make its decoder do, told by its header, before an older archive decodes it.

Archives carry the runtime of their time. One that was packed before `vlserve.runtime.image_bounds`
decodes whatever it is sent: a JPEG of many tiny Exif segments took Pillow 43 s, a WebP of 34 bytes
778 MiB. The limits are those of the runtime of now, and a test holds the two together.
"""

import binascii
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlserve_worker.bodies import BodyRefused

TOO_LARGE = "image_too_large"
TOO_COMPLEX = "image_too_complex"

MAX_PARTS = 20_000
MAX_PIXELS = {"PNG": 30_000_000, "GIF": 20_000_000, "WebP": 20_000_000}
MAX_SEGMENTS = 1000
MAX_METADATA_BYTES = 8 * 2**20
MAX_EXIF_BYTES = 2**20
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 250_000_000

FIELDS = ("image", "image2")
"""Fields of requests that hold an image."""

_LIMIT_OF_EXIF = "MAX_EXIF_BYTES"
_LIMIT_OF_SCANS = re.compile(r"^MAX_SCANNED_PIXELS = ([\d_]+)$", re.MULTILINE)
_JPEG, _PNG, _GIF, _RIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF"
_EXIF_IN_HEX = b"Raw profile type exif\0"
_IN_FRONT_OF_PIXELS = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_AMONG_PIXELS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def bounds_images(archive: Path) -> bool:
    """Return whether the runtime in an unpacked archive knows these limits itself. The first that
    had them let Exif of any size through, the next ones twice the scans."""
    try:
        bounds = (archive / "vlserve" / "runtime" / "image_bounds.py").read_text(encoding="utf-8")
    except OSError:
        return False
    match = _LIMIT_OF_SCANS.search(bounds)
    knows_scans = match is not None and int(match[1]) <= MAX_SCANNED_PIXELS
    return knows_scans and _LIMIT_OF_EXIF in bounds


def check_images(request: Mapping[str, Any]) -> None:
    """Raise BodyRefused for the first image over a limit, in a request as TorchServe's worker reads
    it, once its body is in its place."""
    for parameter in request["parameters"]:
        name, value = parameter["name"], parameter["value"]
        if name in FIELDS:
            _check(_image_of(bytes(value)))
        elif name == "body":
            for image in _images_of_json(bytes(value)):
                _check(image)


def _images_of_json(body: bytes) -> Iterator[bytes]:
    fields: Any = None
    with suppress(ValueError, RecursionError):  # the handler says what is wrong with it
        fields = json.loads(body)
    if isinstance(fields, dict):
        for name in FIELDS:
            if isinstance(text := fields.get(name), str):
                yield _image_of(text.encode("utf-8", "replace"))


def _image_of(value: bytes) -> bytes:
    """Return the image of a field that holds its bytes, or base64 of them, or a data URI."""
    if value.startswith((_JPEG, _PNG, _GIF, _RIFF)):
        return value
    if value.startswith(b"data:"):
        value = value.partition(b",")[2]
    try:
        return binascii.a2b_base64(value)
    except ValueError:
        return value


def _check(image: bytes) -> None:
    if image.startswith(_JPEG):
        _check_jpeg(image)
        return
    if image.startswith(_PNG):
        _check_parts("PNG", _png_chunks(image))
        _check_pixels("PNG", [(_big(image, 16, 4), _big(image, 20, 4))])
    elif image.startswith(_GIF):
        _check_parts("GIF", (0 for _ in _gif_blocks(image)))
        _check_pixels("GIF", _gif_sizes(image))
    elif image.startswith(_RIFF) and image[8:12] == b"WEBP":
        _check_parts("WebP", _riff_chunks(image))
        _check_pixels("WebP", [_webp_size(image)])


def _check_pixels(kind: str, sizes: list[tuple[int, int]]) -> None:
    limit = MAX_PIXELS[kind]
    for width, height in sizes:
        if width * height > limit:
            raise BodyRefused(
                f"the image has {width} x {height} pixels, the limit is {limit} in all", TOO_LARGE
            )


def _check_parts(kind: str, parts: Iterator[int]) -> None:
    """``parts``: the bytes of Exif in each."""
    for number, exif_bytes in enumerate(parts):
        if number == MAX_PARTS:
            raise BodyRefused(f"the {kind} has more than {MAX_PARTS} parts", TOO_COMPLEX)
        if exif_bytes > MAX_EXIF_BYTES:
            raise BodyRefused(
                f"the image has more than {MAX_EXIF_BYTES} bytes of Exif", TOO_COMPLEX
            )


def _png_chunks(data: bytes) -> Iterator[int]:
    at = 8
    while at + 12 <= len(data):
        length, kind = _big(data, at, 4), data[at + 4 : at + 8]
        if kind == b"eXIf":
            yield length
        else:
            in_hex = kind in (b"tEXt", b"iTXt") and data.startswith(_EXIF_IN_HEX, at + 8)
            yield length // 2 if in_hex else 0
        at += 12 + length


def _riff_chunks(data: bytes) -> Iterator[int]:
    at = 12
    while at + 8 <= len(data):
        length = _little(data, at + 4, 4)
        yield length if data[at : at + 4] == b"EXIF" else 0
        at += 8 + length + length % 2


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Yield where the blocks in front of the pixels begin; it ends where the pixels do."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while at < len(data) and data[at] != 0x2C:
        yield at
        if data[at] != 0x21:  # Pillow goes on byte by byte
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1
    yield at


def _gif_sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes of the screen and of the first picture, which may be larger."""
    *_, at = _gif_blocks(data)
    return [(_little(data, place, 2), _little(data, place + 2, 2)) for place in (6, at + 5)]


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + _little(data, 24, 3), 1 + _little(data, 27, 3)
    if kind == b"VP8L":
        bits = _little(data, 21, 4)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF


def _check_jpeg(data: bytes) -> None:
    at, segments, metadata, exif, scans, pixels = 2, 0, 0, 0, 0, 0
    while match := (_AMONG_PIXELS if scans else _IN_FRONT_OF_PIXELS).search(data, at):
        place, marker = match.start(), data[match.start() + 1]
        segments += 1
        length = 0 if marker in _ALONE or marker == _EOI else _big(data, place + 2, 2)
        if not scans:
            metadata += place - at + length
        if marker == _APP1 and data.startswith(b"Exif\0", place + 4):
            exif += length
        if marker in _FRAMES and not pixels:
            pixels = _big(data, place + 5, 2) * _big(data, place + 7, 2)
        scans += marker == _SOS
        for count, limit, what in (
            (segments, MAX_SEGMENTS, "segments"),
            (metadata, MAX_METADATA_BYTES, "bytes of metadata"),
            (exif, MAX_EXIF_BYTES, "bytes of Exif"),
        ):
            if count > limit:
                raise BodyRefused(f"the JPEG has more than {limit} {what}", TOO_COMPLEX)
        if scans > MAX_SCANS or (scans - 1) * pixels > MAX_SCANNED_PIXELS:
            raise BodyRefused(
                f"the JPEG has {scans} scans or more, which are too many for its size: send it "
                "smaller, or not progressive",
                TOO_LARGE,
            )
        if marker == _EOI:
            return
        at = place + 2 + length


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")


def _little(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "little")
