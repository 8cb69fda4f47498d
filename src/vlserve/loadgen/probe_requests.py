"""Requests for any task, made of an archive's probes: none equals a probe or another request."""

import base64
import binascii
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, UnidentifiedImageError

from vlserve.errors import DataError
from vlserve.loadgen.dataset_requests import RequestBody
from vlserve.runtime.archive import manifest_of

_NPY = b"\x93NUMPY"


def vary_probes(archive: Path, count: int, seed: int = 0) -> tuple[RequestBody, ...]:
    """Return ``count`` JSON bodies; the same ``seed`` gives the same ones.

    Texts are mixed from the words of all probes, images get another brightness, arrays of features
    another scale; other fields stay. DataError for an archive without probes,
    ArchiveError for what is none.
    """
    probes = manifest_of(archive).probes
    if not probes:
        raise DataError(f"{archive.name} holds no probes to make requests of")
    texts = [text for probe in probes for text in probe.fields.values() if _is_text(text)]
    vary = _Variation(random.Random(seed), _pieces(texts))
    return tuple(vary.body(probes[number % len(probes)].fields) for number in range(count))


class _Variation:
    """Varies fields at random; texts are made of ``pieces``."""

    def __init__(self, chance: random.Random, pieces: Sequence[str]) -> None:
        self._chance = chance
        self._pieces = pieces

    def body(self, fields: dict[str, Any]) -> RequestBody:
        content = {name: self._value(value) for name, value in fields.items()}
        return RequestBody(json.dumps(content).encode(), "application/json")

    def _value(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        file = _file(value)
        if file is None:
            return self._text()
        data = self._features(file) if file.startswith(_NPY) else self._image(file)
        return base64.b64encode(data).decode("ascii")

    def _text(self) -> str:
        return "".join(self._chance.choices(self._pieces, k=self._chance.randint(3, 9)))

    def _features(self, file: bytes) -> bytes:
        array = np.load(io.BytesIO(file), allow_pickle=False)
        out = io.BytesIO()
        np.save(out, (array * self._chance.uniform(0.8, 1.2)).astype(array.dtype))
        return out.getvalue()

    def _image(self, file: bytes) -> bytes:
        with Image.open(io.BytesIO(file)) as image:
            brightness = ImageEnhance.Brightness(image.convert("RGB"))
            out = io.BytesIO()
            brightness.enhance(self._chance.uniform(0.5, 1.5)).save(out, "JPEG")
        return out.getvalue()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and _file(value) is None


def _file(value: str) -> bytes | None:
    """Return the image or array that a field holds as base64; None for a text."""
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    if content.startswith(_NPY):
        return content
    try:
        Image.open(io.BytesIO(content)).close()
    except UnidentifiedImageError:
        return None
    return content


def _pieces(texts: Sequence[str]) -> list[str]:
    """Return words with the space after them; of a word that is not ASCII, its characters."""
    words = [word for text in texts for word in text.split()]
    return [
        piece for word in words for piece in ([f"{word} "] if word.isascii() else list(word))
    ] or [" "]
