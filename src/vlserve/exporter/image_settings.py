"""How images become arrays, as transformers' files say it, and whether it can be right.

transformers 4 writes ``preprocessor_config.json`` beside a checkpoint; 5 writes the same fields
into ``processor_config.json``, under ``image_processor``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.errors import ExportError
from vlserve.exporter.json_file import read_json
from vlserve.runtime.manifest import ImageInput

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
PIXELS = 255
DIGITS = 6
"""Of a mean or a deviation that is computed."""


@dataclass(frozen=True)
class PublishedImage:
    """Fields of ImageInput that a file says."""

    file: str
    fields: Mapping[str, Any]

    @property
    def note(self) -> str:
        """What to say about it."""
        settings = ", ".join(f"{name} {value}" for name, value in self.fields.items())
        return f"image settings are read from {self.file}: {settings}"


def published_image(folder: Path) -> PublishedImage | None:
    """Read how transformers prepares images, from a file in ``folder``; None where there is none.

    Raises:
        ExportError: the file cannot be read, or asks for what is not done.
    """
    for name in (PROCESSOR, PREPROCESSOR):
        path = folder / name
        if not path.is_file():
            continue
        content = _read(path)
        settings = content.get("image_processor", {}) if name == PROCESSOR else content
        fields = _fields(settings, name) if isinstance(settings, Mapping) else {}
        if fields:
            return PublishedImage(name, fields)
    return None


def check_pixel_scale(image: ImageInput) -> None:
    """Raise ExportError where mean and std cannot be those of RGB in 0..1, which images are.

    Export's proof cannot see it, since graph and network get the same wrong numbers.
    """
    for name, values in (("mean", image.mean), ("std", image.std)):
        if all(0 <= value <= 1 and (value > 0 or name == "mean") for value in values):
            continue
        if all(1 <= value <= PIXELS for value in values):
            fractions = [round(value / PIXELS, DIGITS) for value in values]
            raise ExportError(
                f"image.{name} {list(values)} is of pixels from 0 to 255, but images are scaled to "
                f"0..1: write {fractions} into config.json"
            )
        raise ExportError(
            f"image.{name} {list(values)} cannot be of RGB in 0..1, which images are scaled to: "
            f"each value must be {'from 0' if name == 'mean' else 'above 0,'} up to 1"
        )


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path, str(path))
    if not isinstance(content, Mapping):
        raise ExportError(f"{path} is not a JSON object")
    return content


def _fields(settings: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return size in pixels; mean and std for RGB in 0..1, whatever the rescale factor."""
    if settings.get("do_flip_channel_order"):
        raise ExportError(f"{file} asks for channels in the order BGR; only RGB is read")
    fields = _size(settings) if settings.get("do_resize", True) else {}
    rescales = settings.get("do_rescale", True)
    factor = PIXELS * (settings.get("rescale_factor", 1 / PIXELS) if rescales else 1)
    if settings.get("do_normalize", True):
        numbers = {"mean": settings.get("image_mean"), "std": settings.get("image_std")}
    else:
        numbers = {"mean": [0.0] * 3, "std": [1.0] * 3}
    for name, values in numbers.items():
        if values is None:
            continue
        per_channel = list(values) if isinstance(values, list) else [values] * 3
        try:
            fields[name] = [round(float(value) / factor, 2 * DIGITS) for value in per_channel]
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ExportError(f"{file}: image_{name} is no list of numbers") from error
    return fields


def _size(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size that the network sees: the crop where there is one, else the resized
    image."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = size if size is not None else settings.get("size")
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        height, width = size.get("height", side), size.get("width", side)
    else:
        height = width = size
    if isinstance(height, int) and isinstance(width, int):
        return {"height": height, "width": width}
    return {}
