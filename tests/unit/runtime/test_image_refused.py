"""What is no image, or would cost too much, is refused before it is decoded."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import GifImagePlugin, Image, ImageFile, WebPImagePlugin

from support.picture_files import SIZE, png_chunk, raw_png, saved, scene, with_orientation
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.image import MAX_JPEG_SCANS, decode
from vlserve.runtime.image_bounds import MAX_PARTS, MAX_PIXELS
from vlserve.runtime.manifest import ImageInput


def code(data: bytes, spec: ImageInput = SIZE) -> ErrorCode:
    with pytest.raises(RequestError) as error:
        decode(data, spec)
    assert error.value.message
    return error.value.code


def huge_png(width: int, height: int) -> bytes:
    return raw_png(width, height, 8, 2, b"")


def huge_gif(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("P", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def huge_jpeg(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def huge_webp(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    start = data.index(b"VP8L") + 9
    (bits,) = struct.unpack("<I", data[start : start + 4])
    bits = bits & ~(2**28 - 1) | (width - 1) | (height - 1) << 14
    data[start : start + 4] = struct.pack("<I", bits)
    return bytes(data)


@pytest.mark.parametrize("build", [huge_png, huge_gif, huge_jpeg, huge_webp])
@pytest.mark.parametrize("side", [8_000, 10_500, 16_383])
def test_too_many_pixels_are_refused_by_the_header(
    build: Callable[[int, int], bytes], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    assert code(build(side, side)) is ErrorCode.IMAGE_TOO_LARGE


def test_sides_that_no_image_has() -> None:
    assert code(huge_png(2**31 - 1, 2**31 - 1)) is ErrorCode.IMAGE_TOO_LARGE
    assert code(huge_png(0, 5)) is ErrorCode.IMAGE_UNREADABLE
    assert code(huge_jpeg(0, 0)) is ErrorCode.IMAGE_UNREADABLE
    assert code(huge_gif(0, 0)[:-3]) is ErrorCode.IMAGE_UNREADABLE


def test_limits_are_the_manifests() -> None:
    data = saved(scene(100, 50), "PNG")
    decode(data, SIZE.model_copy(update={"max_bytes": len(data), "max_pixels": 5000}))
    fewer_bytes = SIZE.model_copy(update={"max_bytes": len(data) - 1})
    assert code(data, fewer_bytes) is ErrorCode.IMAGE_TOO_LARGE
    fewer_pixels = SIZE.model_copy(update={"max_pixels": 4999})
    assert code(data, fewer_pixels) is ErrorCode.IMAGE_TOO_LARGE


def test_byte_limit_comes_before_any_look_inside() -> None:
    assert code(b"x" * 101, SIZE.model_copy(update={"max_bytes": 100})) is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    ("scans", "refusal"),
    [(MAX_JPEG_SCANS, ErrorCode.IMAGE_TOO_LARGE), (5000, ErrorCode.IMAGE_TOO_COMPLEX)],
)
def test_jpeg_of_endless_scans_is_refused(
    scans: int, refusal: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a pass over all pixels and few bytes: none is decoded."""
    data = saved(scene(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * scans + data[-2:]
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert code(bomb) is refusal


def animated_webp(frames: int) -> bytes:
    """A WebP of so many frames, 46 bytes each."""
    picture = saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = bytes(6 + 6) + b"\x64\0\0\0" + picture
    frames_bytes = (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames
    head = b"VP8X" + struct.pack("<I", 10) + b"\x02" + bytes(9)
    body = b"WEBP" + head + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frames_bytes
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated_gif(frames: int) -> bytes:
    whole = saved(scene(), "GIF")
    start = whole.index(b",\0\0\0\0")
    return whole[:start] + whole[start:-1] * frames + whole[-1:]


def test_frames_behind_the_first_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Any, frame: int) -> None:
        raise AssertionError("a further frame was looked for")

    for kind in (GifImagePlugin.GifImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(kind, "seek", never)
    assert decode(animated_gif(3000), SIZE).shape == (3, 24, 40)
    assert decode(animated_webp(MAX_PARTS - 10), SIZE).shape == (3, 24, 40)
    assert code(animated_webp(MAX_PARTS)) is ErrorCode.IMAGE_TOO_COMPLEX


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        saved(scene(), "BMP"),
        saved(scene(), "TIFF"),
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    assert code(data) is ErrorCode.IMAGE_UNREADABLE


SAMPLES = {
    "JPEG": saved(scene(), "JPEG"),
    "progressive": saved(scene(), "JPEG", progressive=True),
    "PNG": saved(scene(), "PNG"),
    "palette": saved(scene().convert("P"), "PNG"),
    "WEBP": saved(scene(), "WEBP"),
    "GIF": saved(scene(), "GIF"),
    "turned": with_orientation(scene(), "JPEG", 6),
}


TRAILER_BYTES = 25
"""What may be missing without a pixel missing: PNG's last chunk and checksum."""


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_refused(name: str) -> None:
    whole = SAMPLES[name]
    ends = list(range(0, len(whole) - TRAILER_BYTES, max(1, len(whole) // 60)))
    if name not in ("PNG", "palette", "GIF"):
        ends += range(len(whole) - TRAILER_BYTES, len(whole))
    for end in ends:
        assert code(whole[:end]) is ErrorCode.IMAGE_UNREADABLE, f"{end} of {len(whole)} bytes"


REFUSALS = {
    *(ErrorCode.IMAGE_UNREADABLE, ErrorCode.IMAGE_TOO_LARGE),
    *(ErrorCode.IMAGE_DAMAGED, ErrorCode.IMAGE_TOO_COMPLEX),
}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(sorted(SAMPLES.values()))))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "double"]))
        if change == "set":
            raw[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del raw[place : place + data.draw(st.integers(1, 16))]
        else:
            raw[place:place] = raw[place : place + data.draw(st.integers(1, 64))]
        if not raw:
            break
    try:
        array = decode(bytes(raw), SIZE)
    except RequestError as error:
        assert error.code in REFUSALS
    else:
        assert array.shape == (3, 24, 40)
        assert np.isfinite(array).all()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    assert code(data) is ErrorCode.IMAGE_UNREADABLE


def many_png_chunks(kind: bytes) -> bytes:
    whole = saved(scene(), "PNG")
    return whole[:33] + png_chunk(kind, b"a\0b") * MAX_PARTS + whole[33:]


def many_gif_blocks(size: int) -> bytes:
    whole = saved(scene(), "GIF")
    start = whole.index(b",\0\0\0\0")
    blocks = (bytes([size]) + b"c" * size) * MAX_PARTS
    return whole[:start] + b"\x21\xfe" + blocks + b"\0" + whole[start:]


@pytest.mark.parametrize(
    "data",
    [
        many_png_chunks(b"tEXt"),
        many_png_chunks(b"IDAT"),
        many_png_chunks(b"teST"),
        many_gif_blocks(1),
        many_gif_blocks(255),
        saved(scene(), "GIF")[:13] + b"\0" * (MAX_PARTS + 1000),
    ],
    ids=["texts", "pixels", "unknown", "gif-of-1", "gif-of-255", "gif-junk"],
)
def test_parts_have_a_limit(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow walks them one by one, in Python: it does not see such a file."""
    monkeypatch.setattr(Image, "open", None)
    assert code(data) is ErrorCode.IMAGE_TOO_COMPLEX


@pytest.mark.parametrize(("kind", "most"), MAX_PIXELS.items())
def test_pixels_have_a_limit_by_format(kind: str, most: int) -> None:
    """A WebP of 34 bytes may have 50 million: told by its header."""
    width = most // 5000 + 1
    options = {"lossless": True} if kind == "WEBP" else {}
    assert code(saved(Image.new("L", (width, 5000)), kind, **options)) is ErrorCode.IMAGE_TOO_LARGE
    small = SIZE.model_copy(update={"max_pixels": 100})
    assert code(saved(Image.new("L", (11, 10)), kind), small) is ErrorCode.IMAGE_TOO_LARGE


def test_the_scans_of_a_large_jpeg_are_fewer() -> None:
    raw = saved(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    scan = raw[raw.rindex(b"\xff\xda") : -2]
    assert decode(raw, SIZE).shape == (3, 24, 40)
    assert code(raw[:-2] + scan * 70 + raw[-2:]) is ErrorCode.IMAGE_TOO_LARGE


def test_five_megapixels_in_a_hundred_scans_are_refused_before_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = saved(Image.new("L", (2500, 2000)), "JPEG", progressive=True)
    scan = raw[raw.rindex(b"\xff\xda") : -2]
    bomb = raw[:-2] + scan * 90 + raw[-2:]
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(RequestError, match=r"9[0-9] scans, the limit for 2500 x 2000 pixels is 51"):
        decode(bomb, SIZE)


def test_a_progressive_photo_of_a_large_camera_is_read() -> None:
    raw = saved(Image.new("RGB", (6000, 4000), "teal"), "JPEG", progressive=True)
    assert raw.count(b"\xff\xda") == 10
    assert decode(raw, SIZE).shape == (3, 24, 40)
