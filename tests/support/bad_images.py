"""Files that are no whole image, or too large a one, as requests with the refusal they must get."""

import base64
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from support.raw_http import Case
from support.request_bodies import IMAGE, JPEG, PNG, as_form, as_json


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    """Every byte of its file counts."""
    raw = random.Random(1).randbytes(96 * 64 * len(mode))
    return Image.frombytes(mode, (96, 64), raw)


def whole_images() -> dict[str, bytes]:
    """One image of each kind that is admitted."""
    return {
        "jpeg": encoded(noise(), "JPEG"),
        "progressive-jpeg": encoded(noise(), "JPEG", progressive=True),
        "cmyk-jpeg": encoded(noise("CMYK"), "JPEG"),
        "png": encoded(noise(), "PNG"),
        "webp": encoded(noise(), "WEBP"),
        "lossless-webp": encoded(noise(), "WEBP", lossless=True),
        "gif": encoded(noise("L"), "GIF"),
    }


def _png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A 1-bit PNG with these pixels under a header that says this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def _jpeg(width: int, height: int) -> bytes:
    raw = bytearray(encoded(noise(), "JPEG"))
    start = raw.index(b"\xff\xc0")
    raw[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


def _gif(width: int, height: int) -> bytes:
    raw = bytearray(encoded(noise("L"), "GIF"))
    raw[6:10] = struct.pack("<HH", width, height)
    start = raw.index(b",\0\0\0\0")
    raw[start + 5 : start + 9] = struct.pack("<HH", width, height)
    return bytes(raw)


def _webp(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    pixels = encoded(noise(), "WEBP")[12:]
    body = b"WEBP" + b"VP8X" + struct.pack("<II", 10, 0) + canvas + pixels
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _many_scans() -> bytes:
    raw = encoded(noise(), "JPEG", progressive=True)
    scan = raw[raw.rindex(b"\xff\xda") : -2]
    return raw[:-2] + scan * 200 + raw[-2:]


def _with_wrong_check() -> bytes:
    raw = bytearray(PNG)
    raw[len(raw) // 2] ^= 0xFF
    return bytes(raw)


def truncated() -> Iterator[Case]:
    for kind, raw in whole_images().items():
        shares = [len(raw) * percent // 100 for percent in (10, 33, 66, 90, 97)]
        for place in (1, 3, 11, 30, *shares):
            name = f"{kind}-cut-at-{place}"
            yield as_form(name, 400, "image_unreadable", image=raw[:place])
        half = base64.b64encode(raw[: len(raw) // 2]).decode()
        yield as_json(f"{kind}-cut-in-json", 400, "image_unreadable", image=half)


def too_many_pixels() -> Iterator[Case]:
    bomb = _png(10_000, 10_000, bytes(10_000 * 1_251))
    images = {
        "png-bomb": bomb,
        "png-header-of-30000": _png(30_000, 30_000),
        "png-header-of-2-to-31": _png(2**31 - 1, 2**31 - 1),
        "png-header-of-one-row": _png(2**31 - 1, 1),
        "jpeg-header-of-65500": _jpeg(65_500, 65_500),
        "gif-header-of-65535": _gif(65_535, 65_535),
        "webp-header-of-16383": _webp(16_383, 16_383),
        "jpeg-of-200-scans": _many_scans(),
    }
    for name, raw in images.items():
        yield as_form(name, 413, "image_too_large", image=raw)
    in_json = base64.b64encode(bomb).decode()
    yield as_json("png-bomb-in-json", 413, "image_too_large", image=in_json)


def no_image() -> Iterator[Case]:
    some = random.Random(2)
    files = {
        "zero-bytes": b"",
        "one-byte": b"\xff",
        "nul-bytes": bytes(1000),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "html": b"<!doctype html><html><body><img src=x onerror=alert(1)></body></html>",
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) run\n",
        "bmp": encoded(noise(), "BMP"),
        "tiff": encoded(noise(), "TIFF"),
        "ico": encoded(noise(), "ICO"),
        "ppm": encoded(noise(), "PPM"),
        "mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(100),
        "zip": b"PK\x03\x04" + bytes(100),
        "executable": b"\x7fELF\x02\x01\x01" + bytes(200),
        "plain-text": "这不是图片".encode(),
        "jpeg-magic-then-random": b"\xff\xd8\xff\xe0" + some.randbytes(2000),
        "png-magic-then-random": b"\x89PNG\r\n\x1a\n" + some.randbytes(2000),
        "gif-without-a-frame": b"GIF89a\x20\0\x20\0\0\0\0;",
        "webp-magic-then-random": b"RIFF\xff\0\0\0WEBPVP8 " + some.randbytes(2000),
        "png-of-0-by-0": _png(0, 0),
        "jpeg-of-0-by-0": _jpeg(0, 0),
        "png-with-a-wrong-check": _with_wrong_check(),
        "jpeg-without-a-frame": JPEG.replace(b"\xff\xc0", b"\xff\xfe"),
        **{f"{size}-random-bytes": some.randbytes(size) for size in (10, 1000, 100_000)},
    }
    for name, raw in files.items():
        yield as_form(f"image-is-{name}", 400, "image_unreadable", image=raw)


def bad_base64() -> Iterator[Case]:
    values = {
        "empty": "",
        "a-word": "cover.jpg",
        "a-path": "/etc/passwd",
        "a-url": "http://127.0.0.1:1/cover.jpg",
        "chinese": "封面",
        "wrongly-padded": IMAGE.rstrip("=")[:-1] + "=",
        "cut": IMAGE[:41],
        "with-a-space": IMAGE[:40] + " " + IMAGE[40:],
        "url-safe": "_-" + IMAGE[2:],
        "of-text": base64.b64encode(b"hello").decode(),
        "twice": base64.b64encode(IMAGE.encode()).decode(),
        "a-lone-surrogate": "\ud800",
    }
    for name, value in values.items():
        yield as_json(f"base64-{name}", 400, "image_unreadable", image=value)
