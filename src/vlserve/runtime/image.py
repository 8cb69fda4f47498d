"""Image bytes -> array: one function for training, export, evaluation and serving.

Admitted are JPEG, PNG, WebP and GIF (first frame) in any colour mode. The whole image is squeezed
to the manifest's size, upright as its EXIF orientation says, transparency on white.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.image_bounds import MAX_SCANNED_PIXELS, check_parts, most_pixels
from vlserve.runtime.jpeg import (
    Layout,
    PixelFeed,
    Twins,
    damage,
    doubtful,
    feeds,
    read_layout,
    twins,
)
from vlserve.runtime.jpeg_warnings import damage_told
from vlserve.runtime.manifest import ImageInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten; each further one costs a pass over all pixels and few bytes."""

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright; 5 to 8 swap width and height."""


def decode(data: bytes, spec: ImageInput) -> NDArray[np.float32]:
    """Decode the bytes of an image file to normalised float32 (3, height, width).

    RequestError IMAGE_TOO_LARGE over the byte or pixel limit, told by the header before a pixel
    is decoded, IMAGE_TOO_COMPLEX over those of `image_bounds` and `jpeg`; IMAGE_DAMAGED for a JPEG
    that is broken inside; IMAGE_UNREADABLE for everything else that is no whole image.
    """
    _check_bytes(data, spec)
    try:
        with _no_warnings():
            if data.startswith(b"\xff\xd8"):
                pixels = _decoded_jpeg(data, spec)
            else:
                check_parts(data)
                pixels = _decoded(io.BytesIO(data), data, spec)
    except RequestError:
        raise
    except UnidentifiedImageError:
        raise RequestError(
            ErrorCode.IMAGE_UNREADABLE, f"not an image: send {', '.join(FORMATS)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise RequestError(ErrorCode.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:
        # broken files surface as OSError, SyntaxError, struct.error, IndexError and many more
        raise RequestError(
            ErrorCode.IMAGE_UNREADABLE, f"the image is broken or cut short: {error}"
        ) from error
    return _normalise(np.asarray(pixels), spec)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels, upright, of an image that `decode` can read."""
    with _no_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format == "PNG":
            image.load()  # it may carry its EXIF behind the pixels
        return image.size[::-1] if _swaps(_turn(image)) else image.size


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow, which warns of broken EXIF and the like: no news to who serves images of
    strangers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _check_bytes(data: bytes, spec: ImageInput) -> None:
    if not data:
        raise RequestError(ErrorCode.IMAGE_UNREADABLE, "the image has no bytes")
    if len(data) > spec.max_bytes:
        raise RequestError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"the image has {len(data)} bytes, the limit is {spec.max_bytes}",
        )


def _check_pixels(image: Image.Image, data: bytes, spec: ImageInput) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise RequestError(ErrorCode.IMAGE_UNREADABLE, f"the image is {width} x {height}")
    limit = most_pixels(image.format or "", spec.max_pixels)
    if width * height > limit:
        raise RequestError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"the image has {width} x {height} pixels, the limit is {limit} in all",
        )
    if data.startswith(b"\xff\xd8"):
        scans = _scans(data)
        if scans > MAX_JPEG_SCANS or (scans - 1) * width * height > MAX_SCANNED_PIXELS:
            most = min(MAX_JPEG_SCANS, MAX_SCANNED_PIXELS // (width * height) + 1)
            raise RequestError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"the JPEG has {scans} scans, the limit for {width} x {height} pixels is {most}: "
                "send it smaller, or not progressive",
            )


def _scans(data: bytes) -> int:
    """Return how often a JPEG says that a scan starts; four times as fast as data.count."""
    octets = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((octets[:-1] == 0xFF) & (octets[1:] == 0xDA)))


def _decoded(file: io.BytesIO, data: bytes, spec: ImageInput) -> Image.Image:
    with Image.open(file, formats=FORMATS) as image:
        _check_pixels(image, data, spec)
        if image.format in ("JPEG", "MPO"):
            # libjpeg scales by 1/2, 1/4, 1/8 for almost nothing
            image.draft("RGB", _before(_turn(image), spec))
        return _upright(image, spec)


def _decoded_jpeg(data: bytes, spec: ImageInput) -> Image.Image:
    """Decode a JPEG. RequestError (IMAGE_DAMAGED) where it is broken inside."""
    layout = read_layout(data)
    problem = damage(data, layout)
    if problem is not None:
        raise _damaged(problem)
    if layout.scans and layout.closed and not layout.in_one_scan:
        return _checked_passes(data, layout, spec)
    return _fed(data, layout, spec)


def _fed(data: bytes, layout: Layout, spec: ImageInput) -> Image.Image:
    ends_early: OSError | None = None
    for file in feeds(data, layout):
        try:
            pixels = _decoded(file, data, spec)
        except OSError as error:
            if not layout.closed or "truncated" not in str(error):
                raise
            ends_early = error
            continue
        if isinstance(file, PixelFeed) and not file.used_up:
            raise _damaged("it has pixels left behind the picture's last")
        return pixels
    raise _damaged("its pixels end before the picture does") from ends_early


def _checked_passes(data: bytes, layout: Layout, spec: ImageInput) -> Image.Image:
    pixels, other = (_decoded(twin, data, spec) for twin in twins(data, layout))
    if pixels.tobytes() != other.tobytes():
        raise _damaged("the pixels of its last pass end before the picture does")
    if damage_told(data, layout):
        raise _damaged("libjpeg finds a part of its pixels broken")
    for whole, short in doubtful(data, layout):
        if not _look_same(whole) or _look_same(short):
            raise _damaged("a part of its pixels is zeros")
    return pixels


def _look_same(pair: Twins) -> bool:
    def pixels(file: io.BytesIO) -> bytes:
        with Image.open(file, formats=FORMATS) as image:
            return image.tobytes()

    return pixels(pair[0]) == pixels(pair[1])


def _damaged(why: str) -> RequestError:
    return RequestError(ErrorCode.IMAGE_DAMAGED, f"the JPEG is damaged inside: {why}")


def _upright(image: Image.Image, spec: ImageInput) -> Image.Image:
    """Return RGB of the manifest's size. Turned after the resize, where there are few pixels to
    turn."""
    image.load()  # first: PNG may carry its EXIF behind the pixels
    turn = _turn(image)
    size = _before(turn, spec)
    small = _colours(image).resize(size, Image.Resampling.BILINEAR)
    if small.mode == "RGBA":
        paper = Image.new("RGB", size, "white")
        paper.paste(small, mask=small)
        small = paper
    return small if turn is None else small.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return None


def _before(turn: Image.Transpose | None, spec: ImageInput) -> tuple[int, int]:
    return (spec.height, spec.width) if _swaps(turn) else (spec.width, spec.height)


def _swaps(turn: Image.Transpose | None) -> bool:
    """Return whether an orientation swaps width and height."""
    return turn is not None and turn not in (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_180,
    )


def _colours(image: Image.Image) -> Image.Image:
    """Convert any colour mode to RGB, or to RGBA where something may be transparent."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16 bit grey to its upper 8; Pillow's own conversion cuts everything above 255 to
    white."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _normalise(pixels: NDArray[Any], spec: ImageInput) -> NDArray[np.float32]:
    """Convert uint8 (height, width, 3) to float32 (3, height, width): (x / 255 - mean) / std."""
    mean = np.array(spec.mean, np.float32)[:, None, None]
    std = np.array(spec.std, np.float32)[:, None, None]
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # bytes move faster than floats
    array: NDArray[np.float32] = np.multiply(planes, 1 / (255 * std), dtype=np.float32)
    array -= mean / std
    return array
