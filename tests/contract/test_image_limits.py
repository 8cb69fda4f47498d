"""What an image may cost an archive that was packed before its own code knew limits."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile
from zlib import crc32

import pytest
from PIL import Image

from support.bad_images import whole_images
from support.recorded import unpack
from vlserve.exporter.echo import pack_echo
from vlserve.runtime import image, image_bounds, jpeg
from vlserve.runtime.errors import RequestError
from vlserve.runtime.manifest import ImageInput
from vlserve_worker import image_limits
from vlserve_worker.bodies import BodyRefused
from vlserve_worker.image_limits import bounds_images, check_images
from vlserve_worker.request_filter import Refusal, RequestFilter

WHOLE = whole_images()
SPEC = ImageInput(height=32, width=32)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def lossless_webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    return webp(b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0")


def orientations(count: int) -> bytes:
    """Exif whose orientation is this many fractions, of which Pillow makes an object each."""
    entry = struct.pack("<HHHII", 1, 0x112, 5, count, 26)
    return b"II*\0" + struct.pack("<I", 8) + entry + bytes(4) + struct.pack("<II", 1, 3) * count


def costly() -> Iterator[tuple[str, bytes]]:
    photo, file = Image.radial_gradient("L").resize((300, 200)).convert("RGB"), io.BytesIO()
    photo.save(file, "JPEG", progressive=True)
    slow = file.getvalue()
    scan = slow[slow.rindex(b"\xff\xda") : -2]
    file = io.BytesIO()
    photo.save(file, "JPEG")
    plain = file.getvalue()
    tiny_exif = segment(0xE1, b"Exif\0\0x") * (jpeg.MAX_SEGMENTS + 1)
    long_exif = segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 17
    metadata = segment(0xE2, bytes(65_000)) * (jpeg.MAX_METADATA_BYTES // 65_000 + 1)
    yield "jpeg-of-tiny-segments", plain[:2] + tiny_exif + plain[2:]
    yield "jpeg-of-long-exif", plain[:2] + long_exif + plain[2:]
    yield "jpeg-of-much-metadata", plain[:2] + metadata + plain[2:]
    yield "jpeg-of-bytes-between", plain[:2] + bytes(jpeg.MAX_METADATA_BYTES + 1) + plain[2:]
    yield "jpeg-of-many-scans", slow[:-2] + scan * 200 + slow[-2:]
    exif = orientations(image_bounds.MAX_EXIF_BYTES // 8)
    in_hex = b"Raw profile type exif\0\nexif\n%d\n" % len(exif) + exif.hex().encode()
    wide = io.BytesIO()
    Image.new("L", (2500, 2000)).save(wide, "JPEG", progressive=True)
    large = wide.getvalue()
    large_scan = large[large.rindex(b"\xff\xda") : -2]
    yield "jpeg-of-scans-for-its-size", large[:-2] + large_scan * 60 + large[-2:]
    yield "png-of-much-exif", png(9, 9, chunk(b"eXIf", exif))
    yield "png-of-much-exif-in-hex", png(9, 9, chunk(b"tEXt", in_hex))
    header = riff_chunk(b"VP8X", b"\x08" + bytes(9))
    picture = lossless_webp(1, 1)[12:]
    yield "webp-of-much-exif", webp(header, picture, riff_chunk(b"EXIF", exif))
    many = riff_chunk(b"teST", b"") * (image_bounds.MAX_PARTS + 1)
    yield "webp-of-many-chunks", webp(header, many, picture)
    yield "webp-of-50-megapixels", lossless_webp(10_000, 5_000)
    yield "png-of-50-megapixels", png(10_000, 5_000, chunk(b"IDAT"), chunk(b"IEND"))
    yield "png-of-many-chunks", png(9, 9, chunk(b"tEXt") * (image_bounds.MAX_PARTS + 1))
    small = b"\x2c" + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\x02\x00\x3b"
    screen = struct.pack("<HHBBB", 5_000, 5_000, 0, 0, 0)
    yield "gif-of-25-megapixels", b"GIF89a" + screen + small
    large = b"\x2c" + struct.pack("<HHHHB", 0, 0, 5_000, 5_000, 0) + b"\x02\x00\x3b"
    yield "gif-whose-picture-is-large", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + large
    blocks = b"\x21\xfe\x01x\0" * image_bounds.MAX_PARTS
    yield "gif-of-many-blocks", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + blocks + b"\x2c"


COSTLY = dict(costly())


def request(**parts: bytes) -> dict[str, Any]:
    parameters = [{"name": name, "value": bytearray(value)} for name, value in parts.items()]
    return {"headers": [], "parameters": parameters}


def forms_of(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield a request for each way in which an image is sent."""
    text = base64.b64encode(data).decode()
    uri = f"data:image/jpeg;base64,{text}"
    yield request(text=b"a cat", image=data)
    yield request(image2=data)
    yield request(image=base64.encodebytes(data))
    yield request(image=uri.encode())
    yield request(body=json.dumps({"image": text, "text": "a cat"}).encode())
    yield request(body=json.dumps({"image": uri}).encode())


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_too_much_is_refused_as_the_runtime_of_now_does(name: str) -> None:
    with pytest.raises(RequestError) as now:
        image.decode(COSTLY[name], SPEC)
    for form in forms_of(COSTLY[name]):
        with pytest.raises(BodyRefused) as error:
            check_images(form)
        assert error.value.code == now.value.code


@pytest.mark.parametrize("name", WHOLE)
def test_whole_images_pass(name: str) -> None:
    for form in forms_of(WHOLE[name]):
        check_images(form)


@pytest.mark.parametrize(
    "form",
    [
        request(image=b""),
        request(image=b"no image"),
        request(image=b"\xff\xd8"),
        request(image=b"\xff\xd8\xff"),
        request(image=b"GIF8"),
        request(image=b"\x89PNG\r\n\x1a\n"),
        request(image=b"RIFF\0\0\0\0WEBP"),
        request(body=b"{"),
        request(body=b"[1]"),
        request(body=b'{"image": 3, "image2": null}'),
        request(body=b"[" * 100_000),
        request(body=b'{"image": "\\ud800"}'),
    ],
)
def test_what_is_no_image_is_left_to_the_handler(form: dict[str, Any]) -> None:
    check_images(form)


def test_the_limits_are_those_of_the_runtime() -> None:
    ours = {name.upper(): limit for name, limit in image_limits.MAX_PIXELS.items()}
    assert ours == image_bounds.MAX_PIXELS
    assert image_limits.MAX_PARTS == image_bounds.MAX_PARTS
    assert image_limits.MAX_SCANNED_PIXELS == image_bounds.MAX_SCANNED_PIXELS
    assert image_limits.MAX_SCANS == image.MAX_JPEG_SCANS
    assert image_limits.MAX_EXIF_BYTES == image_bounds.MAX_EXIF_BYTES
    for name in ("MAX_SEGMENTS", "MAX_METADATA_BYTES"):
        assert getattr(image_limits, name) == getattr(jpeg, name)


def unpacked(archive: Path, folder: Path) -> Path:
    with ZipFile(archive) as files:
        files.extractall(folder)
    return folder


def test_archives_that_know_the_limits_are_left_alone(tmp_path: Path) -> None:
    old = unpack("version-0.1.0", tmp_path / "old") / "model_store/tagger/1/tagger-1.mar"
    new = pack_echo(tmp_path, "tagger", 1)
    assert not bounds_images(unpacked(old, tmp_path / "old-archive"))
    now = unpacked(new, tmp_path / "new-archive")
    assert bounds_images(now)
    bounds = now / "vlserve" / "runtime" / "image_bounds.py"
    text = bounds.read_text(encoding="utf-8")
    assert "250_000_000" in text
    bounds.write_text(text.replace("250_000_000", "500_000_000"), encoding="utf-8")
    assert not bounds_images(now)


@pytest.mark.parametrize("checks", [True, False])
def test_the_filter_refuses_it_in_the_place_of_an_older_handler(checks: bool) -> None:
    requests = RequestFilter(1, None, 2**25, checks_images=checks)
    (result,) = requests.read_batch([request(image=COSTLY["webp-of-50-megapixels"])])
    assert isinstance(result, Refusal) is checks
