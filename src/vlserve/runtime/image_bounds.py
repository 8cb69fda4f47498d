"""Limits of what an image file may make its decoder do, told before it is decoded.

Pillow walks the parts of a file in Python, one by one, and holds the whole picture of what it
cannot scale down while it decodes.
"""

from collections.abc import Iterator

from vlserve.runtime.errors import ErrorCode, RequestError

MAX_PARTS = 20_000
"""Most chunks of a PNG, and blocks in front of a GIF's pixels. A PNG of 20 MB in chunks of 8 KB,
as libpng writes it, has 2,500."""

MAX_PIXELS = {"PNG": 30_000_000, "GIF": 20_000_000, "WEBP": 20_000_000}
"""Most pixels by format, where the manifest's limit is higher. Each takes 4 bytes in a PNG or GIF
and 16 in a WebP while it is decoded; of a JPEG libjpeg decodes what the model needs."""

MAX_SCANNED_PIXELS = 500_000_000
"""Most pixels times the scans of a JPEG beyond its first: each scan passes over all of them."""


def most_pixels(image_format: str, limit: int) -> int:
    """Return how many pixels an image of this format may have, the manifest's limit given."""
    return min(limit, MAX_PIXELS.get(image_format, limit))


def check_parts(data: bytes) -> None:
    """RequestError (IMAGE_TOO_COMPLEX) for more than MAX_PARTS parts of a PNG or GIF."""
    if data.startswith(b"\x89PNG"):
        parts, what = _png_chunks(data), "PNG has more than {} chunks"
    elif data.startswith(b"GIF8"):
        parts, what = _gif_blocks(data), "GIF has more than {} blocks in front of its pixels"
    else:
        return
    for number, _ in enumerate(parts):
        if number == MAX_PARTS:
            raise RequestError(ErrorCode.IMAGE_TOO_COMPLEX, f"the {what.format(MAX_PARTS)}")


def _png_chunks(data: bytes) -> Iterator[int]:
    at = 8
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _gif_blocks(data: bytes) -> Iterator[int]:
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
