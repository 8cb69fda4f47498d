"""JPEGs that are broken inside are told from those that phones and editors write oddly."""

import io
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.image import decode
from vlserve.runtime.image_bounds import MAX_EXIF_BYTES
from vlserve.runtime.jpeg import (
    FILL_BYTES,
    MAX_METADATA_BYTES,
    MAX_SEGMENTS,
    doubtful,
    read_layout,
)
from vlserve.runtime.manifest import ImageInput

SIZES = (ImageInput(height=224, width=224), ImageInput(height=32, width=32))
END = b"\xff\xd9"


@cache
def photo(mode: str = "RGB", width: int = 640, height: int = 400) -> Image.Image:
    """Something like a photo: soft shapes and fine grain."""
    draw = random.Random(4)
    rough = Image.frombytes("RGB", (20, 13), draw.randbytes(20 * 13 * 3))
    soft = rough.resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (width, height), draw.randbytes(width * height * 3))
    return Image.blend(soft, grain.filter(ImageFilter.BoxBlur(1)), 0.1).convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


ENCODINGS: dict[str, bytes] = {
    "plain": encoded(photo()),
    "optimised": encoded(photo(), optimize=True),
    "all-colours": encoded(photo(), quality=95, subsampling=0),
    "grey": encoded(photo("L")),
    "cmyk": encoded(photo("CMYK")),
    "restarts": encoded(photo(), restart_marker_blocks=8),
    "restarts-by-rows": encoded(photo(), restart_marker_rows=1),
    "progressive": encoded(photo(), progressive=True),
    "progressive-grey": encoded(photo("L"), progressive=True),
}


def pixels(data: bytes) -> tuple[int, int]:
    scans = read_layout(data).scans
    return scans[0].start, scans[-1].end


def refusal(data: bytes, spec: ImageInput = SIZES[0]) -> ErrorCode:
    with pytest.raises(RequestError) as error:
        decode(data, spec)
    return ErrorCode(error.value.code)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("spec", SIZES, ids=["large", "small"])
def test_whole_files_are_decoded_as_pillow_does(name: str, spec: ImageInput) -> None:
    with Image.open(io.BytesIO(ENCODINGS[name])) as image:
        image.draft("RGB", (spec.width, spec.height))
        small = image.convert("RGB").resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    expected = np.asarray(small, np.float32).transpose(2, 0, 1) / 255
    plain = spec.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    np.testing.assert_allclose(decode(ENCODINGS[name], plain), expected, atol=2e-6)


@pytest.mark.parametrize("spec", SIZES, ids=["large", "small"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("name", ENCODINGS)
def test_cut_and_closed_with_an_end_mark(name: str, share: float, spec: ImageInput) -> None:
    data = ENCODINGS[name]
    start, end = pixels(data)
    cut = data[: start + int((end - start) * share)] + END
    if "progressive" in name and spec == SIZES[1] and share > 0.5:
        # the last pass refines what a model of this size does not see
        with suppress(RequestError):
            np.testing.assert_allclose(decode(cut, spec), decode(data, spec), atol=0.1)
        return
    assert refusal(cut, spec) in (
        ErrorCode.IMAGE_DAMAGED,
        ErrorCode.IMAGE_UNREADABLE,  # where the cut fell into the tables between two passes
    )


@pytest.mark.parametrize("spec", SIZES, ids=["large", "small"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.85])
@pytest.mark.parametrize("name", [name for name in ENCODINGS if "progressive" not in name])
@pytest.mark.parametrize("length", [200, 3000, None])
def test_filled_with_zeros(name: str, share: float, length: int | None, spec: ImageInput) -> None:
    data = ENCODINGS[name]
    start, end = pixels(data)
    place = start + int((end - start) * share)
    length = end - place if length is None else min(length, end - place)
    image = data[:place] + bytes(length) + data[place + length :]
    assert refusal(image, spec) is ErrorCode.IMAGE_DAMAGED


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_a_first_pass_filled_with_zeros(share: float) -> None:
    data = ENCODINGS["progressive"]
    start, end = pixels(data)
    place = start + int((end - start) * share)
    assert refusal(data[:place] + bytes(500) + data[place + 500 :]) is ErrorCode.IMAGE_DAMAGED


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def behind_start(*parts: bytes) -> bytes:
    data = ENCODINGS["plain"]
    return data[:2] + b"".join(parts) + data[2:]


def harmless() -> Iterator[tuple[str, bytes]]:
    """What phones and editors write."""
    plain, restarts = ENCODINGS["plain"], ENCODINGS["restarts"]
    tone = encoded(photo(), progressive=True, optimize=True)
    yield "a-video-behind-it", plain + b"\0\0\0\x20ftypmp42" + bytes(range(256)) * 99
    yield "zeros-behind-it", plain + bytes(4096)
    yield "a-second-picture-behind-it", plain + plain
    for name, data in (("plain", plain), ("restarts", restarts)):
        for fill in (b"\0", b"\xff"):
            for count in (1, FILL_BYTES - 1, FILL_BYTES, 512, 4096):
                yield f"{name}-{count}-of-{fill.hex()}", data[:-2] + fill * count + END
    yield "progressive-and-fill", tone[:-2] + bytes(512) + END
    for fill in (b"\0", b"\xff"):
        for count in (1, 2, 15):
            yield f"progressive-{count}-of-{fill.hex()}", tone[:-2] + fill * count + END
    yield "one-restart-too-many", restarts[:-2] + b"\xff\xd7" + END
    yield "an-odd-version", plain.replace(b"JFIF\0\x01\x01", b"JFIF\0\x09\x09")
    yield "adobe", behind_start(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01"))
    yield "photoshop", behind_start(segment(0xED, b"Photoshop 3.0\x008BIM" + bytes(900)))
    yield "a-comment", behind_start(segment(0xFE, b"made by hand\0"))
    yield "fill-bytes-between-segments", behind_start(b"\xff" * 600)
    yield "an-empty-segment", behind_start(segment(0xE5, b""))
    yield "a-thumbnail", behind_start(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + plain[:9000]))
    yield "depth-in-xmp", behind_start(*[segment(0xE1, b"http://ns.adobe.com/xmp/" * 2000)] * 60)
    yield "a-profile", behind_start(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(65000))] * 100)
    sos = plain.index(b"\xff\xda")
    odd = bytearray(plain)
    odd[sos + 4 + 1 + 2 * 3 + 1] = 0  # where the last coefficient stands: Samsung
    yield "an-odd-scan-header", bytes(odd)
    yield "restarts-off", plain[:sos] + segment(0xDD, b"\0\0") + plain[sos:]
    stripes = Image.fromarray(np.tile(np.uint8([0, 255, 0, 0, 255, 255, 0, 255]), (800, 100)))
    yield "a-pattern", encoded(stripes, progressive=True)
    yield "one-pixel", encoded(Image.new("RGB", (1, 1)))
    yield "one-pixel-progressive", encoded(Image.new("RGB", (1, 1)), progressive=True)
    file = io.BytesIO()
    photo().copy().save(file, "MPO", save_all=True, append_images=[photo().copy()])
    yield "several-pictures", file.getvalue()
    for subsampling in ("4:1:1", "4:2:2"):
        yield f"subsampled-{subsampling}", encoded(photo(), subsampling=subsampling)


HARMLESS = dict(harmless())
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimize": {"optimize": True},
    "progressive": {"progressive": True},
}
LARGE = {
    f"{kind}-{colour}-{name}": (kind, colour, name)
    for kind, colour, name in product(("flat", "bordered"), ("white", "black", "red"), OPTIONS)
}


def large(kind: str, colour: str, name: str) -> bytes:
    """A picture of one colour, or with a broad border: made by the test, not by the import."""
    picture = Image.new("RGB", (2000, 1500), colour)
    if kind == "bordered":
        picture.paste(photo(), (700, 500))
    return encoded(picture, **OPTIONS[name])


@pytest.mark.parametrize("spec", SIZES, ids=["large", "small"])
@pytest.mark.parametrize("name", [*HARMLESS, *LARGE])
def test_what_phones_and_editors_write_is_decoded(name: str, spec: ImageInput) -> None:
    decode(HARMLESS[name] if name in HARMLESS else large(*LARGE[name]), spec)


def test_a_file_that_is_only_cut_is_called_so() -> None:
    data = ENCODINGS["plain"]
    assert refusal(data[: len(data) // 2]) is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    "parts",
    [
        [segment(0xE1, b"Exif\0\0x")] * MAX_SEGMENTS,
        [segment(0xFE, b"x")] * MAX_SEGMENTS,
        [segment(0xE1, b"Exif\0\0" + bytes(65_000))] * (MAX_EXIF_BYTES // 65_000 + 1),
        [segment(0xE2, bytes(65_000))] * (MAX_METADATA_BYTES // 65_000 + 1),
        [b"\xff" * (MAX_METADATA_BYTES + 1)],
        [b"x" * (MAX_METADATA_BYTES + 1)],
        [b"\xff\x00" * (MAX_METADATA_BYTES // 2 + 1)],
        [b"\xff\xd0" * MAX_SEGMENTS],
    ],
    ids=["exif", "comments", "exif-bytes", "bytes", "fill", "junk", "stuffing", "restarts"],
)
def test_metadata_has_limits(parts: list[bytes]) -> None:
    """Told before Pillow sees the file: 10 MB of tiny Exif segments took it 43 s."""
    data = behind_start(*parts)
    with pytest.raises(RequestError) as error:
        read_layout(data)
    assert error.value.code is ErrorCode.IMAGE_TOO_COMPLEX
    assert refusal(data) is ErrorCode.IMAGE_TOO_COMPLEX


def test_passes_count_among_what_is_decoded_again() -> None:
    """Each of the four more decodings passes over all pixels as often as there are scans before."""
    zeros = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10" + bytes(100) + b"\x01"
    head, at = ENCODINGS["progressive"][:-2], ENCODINGS["progressive"].index(b"\xff\xc2")
    large = head[: at + 5] + struct.pack(">HH", 2000, 2500) + head[at + 9 :]
    few = large + zeros + END
    many = large + zeros[:10] * 60 + zeros + END
    assert len(list(doubtful(few, read_layout(few)))) == 0
    small = head + zeros * 2 + END
    assert len(list(doubtful(small, read_layout(small)))) == 2
    assert list(doubtful(many, read_layout(many))) == []


def test_segments_between_scans_count_too() -> None:
    data = ENCODINGS["progressive"]
    second = read_layout(data).scans[0].end
    many = data[:second] + segment(0xFE, b"x") * MAX_SEGMENTS + data[second:]
    assert refusal(many) is ErrorCode.IMAGE_TOO_COMPLEX


def test_random_bytes_behind_the_start_are_refused() -> None:
    draw = random.Random(5)
    for size in (0, 1, 5, 100, 10_000):
        assert refusal(b"\xff\xd8" + draw.randbytes(size)) is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize("spec", SIZES, ids=["large", "small"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("name", ["progressive", "progressive-grey"])
@pytest.mark.parametrize("what", ["zeros", "dropped", "random"])
def test_a_pass_that_is_broken(what: str, name: str, share: float, spec: ImageInput) -> None:
    data = ENCODINGS[name]
    start, end = pixels(data)
    place, length = start + int((end - start) * share), 200
    other = {"zeros": bytes(length), "dropped": b"", "random": random.Random(1).randbytes(length)}
    image = data[:place] + other[what].replace(b"\xff", b"\xfe") + data[place + length :]
    assert refusal(image, spec) is ErrorCode.IMAGE_DAMAGED


def test_bytes_in_front_of_the_tables_are_an_editors() -> None:
    data = ENCODINGS["progressive"]
    place = data.index(b"\xff\xc4")
    assert decode(data[:place] + b"\0\0\0" + data[place:], SIZES[0]).shape


def test_without_the_package_whole_files_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlserve.runtime.jpeg_warnings.simplejpeg", None)
    data = ENCODINGS["progressive"]
    assert decode(data, SIZES[0]).shape
    start, end = pixels(data)
    assert refusal(data[: (start + end) // 2] + END) is ErrorCode.IMAGE_DAMAGED
