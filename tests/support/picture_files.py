"""Small pictures as files."""

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageDraw

from vlserve.runtime.manifest import ImageInput

SIZE = ImageInput(height=24, width=40)
RED, GREEN, BLUE, WHITE = (230, 20, 30), (20, 200, 60), (10, 40, 220), (255, 255, 255)


def scene(width: int = 120, height: int = 72) -> Image.Image:
    """Three corners red, green and blue, so that every turn and flip shows."""
    image = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), fill=RED)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), fill=GREEN)
    draw.rectangle((0, height // 2, width // 2 - 1, height), fill=BLUE)
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(width: int, height: int, depth: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG that Pillow does not write; ``pixels``: rows, each behind its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def with_orientation(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
