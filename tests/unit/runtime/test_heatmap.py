"""A grid of values as a peak, a grey picture, and over the image."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vlserve.runtime.heatmap import heat_map_png, overlay_png, peak_of, scaled
from vlserve.runtime.manifest import ImageInput

SIZE = ImageInput(height=30, width=40)
CORNER = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def picture(encoded: str) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def photo(width: int, height: int, orientation: int = 1) -> bytes:
    image, exif, file = Image.new("RGB", (width, height), "white"), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_the_largest_value_is_one_and_nothing_is_below_zero() -> None:
    np.testing.assert_allclose(scaled(np.array([[-3.0, 1.0], [2.0, 4.0]])), [[0, 0.25], [0.5, 1]])
    assert not scaled(np.array([[-1.0, -2.0]])).any()


def test_the_peak_is_the_middle_of_the_largest_cell() -> None:
    assert peak_of(CORNER) == {"x": pytest.approx(5 / 6), "y": 0.75}
    assert peak_of(np.ones((2, 2))) == {"x": 0.25, "y": 0.25}
    assert peak_of(np.zeros((2, 2))) is None


def test_the_heat_map_has_the_size_of_the_image_that_the_model_sees() -> None:
    grey = picture(heat_map_png(CORNER, SIZE))
    assert grey.shape == (30, 40) and grey.dtype == np.uint8
    assert grey[-1, -1] == 255 and grey[0, 0] == 0
    assert not picture(heat_map_png(np.zeros((2, 3)), SIZE)).any()


@pytest.mark.parametrize(
    ("original", "size"),
    [(photo(60, 20), (60, 20)), (photo(60, 20, 6), (20, 60)), (photo(4096, 16), (1024, 4))],
    ids=["as-it-is", "turned-by-exif", "large"],
)
def test_the_overlay_keeps_the_proportions_of_what_was_sent(
    original: bytes, size: tuple[int, int]
) -> None:
    overlay = picture(overlay_png(CORNER, original, SIZE))
    assert overlay.shape == (size[1], size[0], 3)
    assert overlay[0, 0].min() > 240  # white as it was
    red, green, blue = (int(channel) for channel in overlay[-1, -1])
    assert red > 100 and max(green, blue) < 40  # hot
