"""Whatever users upload becomes the same array everywhere, or a clear error."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from support.picture_files import (
    BLUE,
    GREEN,
    RED,
    SIZE,
    WHITE,
    raw_png,
    saved,
    scene,
    with_orientation,
)
from vlserve.runtime.image import UPRIGHT, decode
from vlserve.runtime.manifest import ImageInput

PLAIN = SIZE.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})


def corners(data: bytes, spec: ImageInput = PLAIN) -> list[tuple[int, int, int]]:
    """Colours, 0 to 255, inside the top left, top right, bottom left and bottom right quarter."""
    array = decode(data, spec) * 255
    rows, columns = (spec.height // 4, spec.height * 3 // 4), (spec.width // 4, spec.width * 3 // 4)
    return [colour(array[:, row, column]) for row in rows for column in columns]


def colour(values: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue


def near(actual: list[tuple[int, int, int]], expected: list[tuple[int, int, int]], by: int) -> bool:
    return bool(np.abs(np.array(actual) - np.array(expected)).max() <= by)


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
    colours = corners(saved(image.convert(mode, dither=Image.Dither.NONE), "PNG"))
    assert colours == [*expected, *expected]


def test_cmyk_jpeg() -> None:
    data = saved(scene().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 12)


def test_16_bit_grey_keeps_its_upper_half() -> None:
    values = np.full((48, 80), 40 * 256 + 255, np.uint16)
    values[:, 40:] = 200 * 256
    assert corners(saved(Image.fromarray(values), "PNG")) == [(40,) * 3, (200,) * 3] * 2


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
        colours = corners(saved(image, kind, **options))
        assert near(colours, [WHITE, BLUE, WHITE, (127, 127, 127)], 1)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    inverse = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    picture = scene(300, 180)
    if (turn := UPRIGHT.get(orientation)) is not None:
        picture = picture.transpose(inverse.get(turn, turn))
    data = with_orientation(picture, kind, orientation)
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
    sizes = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def spy(self: Any, mode: Any, size: Any) -> Any:
        result = draft(self, mode, size)
        sizes.append(self.size)
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    data = saved(scene(1200, 720), "JPEG", quality=95)
    assert near(corners(data), [RED, GREEN, BLUE, WHITE], 6)
    assert sizes == [(150, 90)]
