"""Whatever users upload becomes the same array everywhere, or a clear error."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFile, ImageOps, JpegImagePlugin

from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.image import MAX_JPEG_SCANS, UPRIGHT, decode
from vlserve.runtime.image_bounds import MAX_PARTS, MAX_PIXELS
from vlserve.runtime.manifest import ImageInput

SIZE = ImageInput(height=24, width=40)
PLAIN = SIZE.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
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


def corners(data: bytes, spec: ImageInput = PLAIN) -> list[tuple[int, int, int]]:
    """Colours, 0 to 255, inside the top left, top right, bottom left and bottom right quarter."""
    array = decode(data, spec) * 255
    rows, columns = (spec.height // 4, spec.height * 3 // 4), (spec.width // 4, spec.width * 3 // 4)
    return [colour(array[:, row, column]) for row in rows for column in columns]


def colour(values: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue


def near(got: list[tuple[int, int, int]], expected: list[tuple[int, int, int]], by: int) -> bool:
    return bool(np.abs(np.array(got) - np.array(expected)).max() <= by)


def code(data: bytes, spec: ImageInput = SIZE) -> ErrorCode:
    with pytest.raises(RequestError) as caught:
        decode(data, spec)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("kind", "options", "by"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("GIF", {}, 12),
    ],
)
def test_every_admitted_format(kind: str, options: dict[str, Any], by: int) -> None:
    assert near(corners(saved(scene(), kind, **options)), [RED, GREEN, BLUE, WHITE], by)


def test_normalised_float32_channels_first() -> None:
    array = decode(saved(Image.new("RGB", (9, 9), RED), "PNG"), SIZE)
    assert array.shape == (3, 24, 40)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    expected = (np.array(RED) / 255 - np.array(SIZE.mean)) / np.array(SIZE.std)
    np.testing.assert_allclose(array, np.broadcast_to(expected[:, None, None], array.shape), 1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", [(0, 0, 0), WHITE]),
        ("L", [(40, 40, 40), (200, 200, 200)]),
        ("LA", [(40, 40, 40), (200, 200, 200)]),
        ("P", [(40, 40, 40), (200, 200, 200)]),
        ("RGBA", [(40, 40, 40), (200, 200, 200)]),
    ],
)
def test_colour_modes_of_png(mode: str, expected: list[tuple[int, int, int]]) -> None:
    image = Image.new("L", (80, 48), 40)
    image.paste(200, (40, 0, 80, 48))
    got = corners(saved(image.convert(mode, dither=Image.Dither.NONE), "PNG"))
    assert got == [*expected, *expected]


def test_cmyk_jpeg() -> None:
    data = saved(scene().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 12)


def test_16_bit_grey_keeps_its_upper_half() -> None:
    values = np.full((48, 80), 40 * 256 + 255, np.uint16)
    values[:, 40:] = 200 * 256
    assert corners(saved(Image.fromarray(values), "PNG")) == [(40,) * 3, (200,) * 3] * 2


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(width: int, height: int, depth: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG that Pillow does not write; ``pixels``: rows, each behind its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def test_16_bit_colour_png() -> None:
    row = b"\0" + struct.pack(">3H", *(value * 257 for value in RED)) * 80
    assert corners(raw_png(80, 48, 16, 2, row * 48)) == [RED] * 4


def test_16_bit_colour_with_alpha_png() -> None:
    row = b"\0" + struct.pack(">4H", *(value * 257 for value in RED), 0) * 80
    assert corners(raw_png(80, 48, 16, 6, row * 48)) == [WHITE] * 4


def test_transparent_key_of_16_bit_grey_is_white() -> None:
    values = np.full((48, 80), 1000, np.uint16)
    values[:, 40:] = 40 * 256
    data = saved(Image.fromarray(values), "PNG", transparency=1000)
    assert corners(data) == [WHITE, (40,) * 3] * 2


def test_alpha_is_composed_on_white() -> None:
    image = Image.new("RGBA", (80, 48), (*RED, 0))
    image.paste((*BLUE, 255), (40, 0, 80, 24))
    image.paste((0, 0, 0, 128), (40, 24, 80, 48))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        got = corners(saved(image, kind, **options))
        assert near(got, [WHITE, BLUE, WHITE, (127, 127, 127)], 1)


def test_hidden_colours_do_not_bleed_through_the_resize() -> None:
    image = Image.new("RGBA", (400, 240), (0, 0, 0, 0))
    image.paste((*WHITE, 255), (0, 0, 400, 120))
    array = decode(saved(image, "PNG"), PLAIN)
    np.testing.assert_allclose(array, 1.0, atol=1 / 255)


@pytest.mark.parametrize("entries", [bytes([255, 0, 255, 255]), 1])
def test_transparent_palette_is_white(entries: bytes | int) -> None:
    image = Image.new("P", (80, 48), 0)
    image.putpalette([*RED, *GREEN, *BLUE, 0, 0, 0])
    image.paste(1, (40, 0, 80, 48))
    assert corners(saved(image, "PNG", transparency=entries)) == [RED, WHITE, RED, WHITE]


def test_transparent_gif_is_white() -> None:
    image = Image.new("P", (80, 48), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (40, 0, 80, 48))
    assert corners(saved(image, "GIF", transparency=1)) == [RED, WHITE, RED, WHITE]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (40, 24), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert near(corners(data), [RED] * 4, 4)


def test_first_picture_of_a_phones_several() -> None:
    data = saved(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (120, 72), RED)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 25)


def with_orientation(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    inverse = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = scene(300, 180)
    if (turn := UPRIGHT.get(orientation)) is not None:
        stored = stored.transpose(inverse.get(turn, turn))
    data = with_orientation(stored, kind, orientation)
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 12)


def test_exif_means_what_pillow_says_it_means() -> None:
    for orientation in UPRIGHT:
        data = with_orientation(scene(40, 24), "PNG", orientation)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        spec = PLAIN.model_copy(update={"width": upright.width, "height": upright.height})
        expected = np.asarray(upright).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(decode(data, spec), expected, atol=1e-6)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_no_orientation(exif: bytes) -> None:
    data = saved(scene(), "JPEG", quality=95, exif=exif)
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 6)


def test_large_jpeg_is_scaled_by_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def spy(self: Any, mode: Any, size: Any) -> Any:
        result = draft(self, mode, size)
        drafted.append(self.size)
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    data = saved(scene(1200, 720), "JPEG", quality=95)
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 6)
    assert drafted == [(150, 90)]


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


def test_jpeg_of_endless_scans_is_refused() -> None:
    data = saved(scene(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * MAX_JPEG_SCANS + data[-2:]
    assert code(bomb) is ErrorCode.IMAGE_TOO_LARGE


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
