"""Limits of what an image file may make its decoder do, told before it is decoded.

Pillow walks the parts of a file in Python, one by one, and holds the whole picture of what it
cannot scale down while it decodes.
"""

from collections.abc import Iterator

from vlserve.runtime.errors import ErrorCode, RequestError

MAX_PARTS = 20_000
"""Most chunks of a PNG or WebP, and blocks in front of a GIF's pixels. A PNG of 20 MB in chunks of
8 KB, as libpng writes it, has 2,500."""

MAX_EXIF_BYTES = 2**20
"""Most bytes of Exif; a camera's has 64 KiB at the most. Of an orientation of 17 MB Pillow makes
two million fractions, for 11 s."""

MAX_PIXELS = {"PNG": 30_000_000, "GIF": 20_000_000, "WEBP": 20_000_000}
"""Most pixels by format, where the manifest's limit is higher. Each takes 4 bytes in a PNG or GIF
and 16 in a WebP while it is decoded; of a JPEG libjpeg decodes what the model needs."""

MAX_SCANNED_PIXELS = 250_000_000
"""Most pixels times the scans of a JPEG beyond its first: each scan passes over all of them, three
times, for 5 ns a pixel. A photo of 27 million pixels may have ten, as editors write them."""

_EXIF_IN_HEX = b"Raw profile type exif\0"
"""The keyword under which ImageMagick writes Exif into a text of a PNG, two digits a byte; packed
texts (zTXt) Pillow refuses over 1 MiB."""


def most_pixels(image_format: str, limit: int) -> int:
    """Return how many pixels an image of this format may have, the manifest's limit given."""
    return min(limit, MAX_PIXELS.get(image_format, limit))


def check_parts(data: bytes) -> None:
    """RequestError (IMAGE_TOO_COMPLEX) for more than MAX_PARTS parts of a PNG, GIF or WebP, and for
    more Exif than MAX_EXIF_BYTES in one."""
    if data.startswith(b"\x89PNG"):
        parts, what = _png_chunks(data), "PNG has more than {} chunks"
    elif data.startswith(b"GIF8"):
        parts, what = _gif_blocks(data), "GIF has more than {} blocks in front of its pixels"
    elif data.startswith(b"RIFF"):
        parts, what = _riff_chunks(data), "WebP has more than {} chunks"
    else:
        return
    for number, exif_bytes in enumerate(parts):
        if number == MAX_PARTS:
            raise RequestError(ErrorCode.IMAGE_TOO_COMPLEX, f"the {what.format(MAX_PARTS)}")
        if exif_bytes > MAX_EXIF_BYTES:
            raise RequestError(
                ErrorCode.IMAGE_TOO_COMPLEX,
                f"the image has more than {MAX_EXIF_BYTES} bytes of Exif",
            )


def _png_chunks(data: bytes) -> Iterator[int]:
    """Yield each chunk's bytes of Exif."""
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            yield length
        elif kind in (b"tEXt", b"iTXt") and data.startswith(_EXIF_IN_HEX, at + 8):
            yield length // 2
        else:
            yield 0
        at += 12 + length


def _riff_chunks(data: bytes) -> Iterator[int]:
    """Yield each chunk's bytes of Exif."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield length if data[at : at + 4] == b"EXIF" else 0
        at += 8 + length + length % 2


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Yield 0 for each block: none holds Exif."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while at < len(data) and data[at] != 0x2C:
        yield 0
        if data[at] != 0x21:  # Pillow goes on byte by byte
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield 0
            at += 1 + data[at]
        at += 1
