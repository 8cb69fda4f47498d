"""Photo-like covers, or features of regions, with titles, the same every time; as request bodies
for each kind of server."""

import base64
import io
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from urllib3.filepost import encode_multipart_formdata

SIZE = (1280, 720)
JPEG_BYTES = 168_000
"""What a cover of a video site weighs at this size."""
COUNT = 6
_FILES = {"image": "cover.jpg", "features": "features.npy"}
_TITLES = ("零基础教学：3分钟学会做一道家常菜", "How to get started, lesson 11", "城市夜景延时摄影")


@dataclass(frozen=True)
class Photo:
    """One item. ``shown``: a JPEG, or the `.npy` of its regions, in the form's field ``field``."""

    shown: bytes
    text: str
    field: str = "image"


@dataclass(frozen=True)
class Body:
    """One request, ready to send."""

    body: bytes
    headers: Mapping[str, str]


def photos(count: int = COUNT) -> list[Photo]:
    return [_photo(seed) for seed in range(count)]


@cache
def _photo(seed: int) -> Photo:
    """It takes a third of a second to draw one."""
    return Photo(jpeg(seed, SIZE, JPEG_BYTES), _TITLES[seed % len(_TITLES)])


def drawn_for(manifest: Any) -> list[Photo]:
    """What an archive takes: covers, or float16 features of as many regions as it may have."""
    if manifest.image is not None:
        return photos()
    random, regions = np.random.default_rng(0), manifest.regions
    inputs = []
    for seed in range(COUNT):
        file = io.BytesIO()
        features = random.standard_normal((regions.max_regions, regions.dim), np.float32)
        np.save(file, np.maximum(features, 0).astype(np.float16))
        inputs.append(Photo(file.getvalue(), _TITLES[seed % len(_TITLES)], "features"))
    return inputs


def jpeg(seed: int, size: tuple[int, int], target_bytes: int | None = None) -> bytes:
    """A drawn photo of (width, height): noise of falling strength at every scale, as in nature.
    Of the quality that comes closest to ``target_bytes``; of quality 85 without."""
    image = Image.fromarray(_pixels(np.random.default_rng(seed), size))
    if target_bytes is None:
        return _encoded(image, 85)
    over = bisect_left(range(97), target_bytes, lo=1, key=lambda each: len(_encoded(image, each)))
    near = [_encoded(image, quality) for quality in (over - 1, over)]
    return min(near, key=lambda data: abs(len(data) - target_bytes))


def _pixels(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """uint8 (height, width, 3)."""
    width, height = size
    total = np.zeros((height, width, 3), np.float32)
    cells, strength = 2, 70.0
    while cells < width:
        grid = random.normal(0, strength, (max(2, cells * height // width), cells, 3))
        for channel in range(3):
            plane = Image.fromarray(grid[:, :, channel].astype(np.float32))
            total[:, :, channel] += np.asarray(plane.resize(size, Image.Resampling.BICUBIC))
        cells, strength = cells * 2, strength * 0.6
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def _encoded(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def form(photo: Photo) -> Body:
    """A multipart form."""
    body, content_type = encode_multipart_formdata(
        {photo.field: (_FILES[photo.field], photo.shown), "text": photo.text}
    )
    return Body(body, {"Content-Type": content_type})


def handed_form(photo: Photo) -> Body:
    """A multipart form as our gateway hands it to an engine: its bytes, named as plain ones."""
    body = form(photo)
    content_type = {"x-vlserve-content-type": body.headers["Content-Type"]}
    return Body(body.body, {"Content-Type": "application/octet-stream", **content_type})


def item_list(photo: Photo) -> Body:
    """JSON with a list of one item, the image as base64."""
    item = {"image": base64.b64encode(photo.shown).decode(), "text": photo.text}
    return Body(json.dumps({"items": [item]}).encode(), {"Content-Type": "application/json"})


def v2_json(photo: Photo) -> Body:
    """The Open Inference Protocol's JSON, which has no raw bytes: base64."""
    image = base64.b64encode(photo.shown).decode()
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [data]}
        for name, data in (("image", image), ("text", photo.text))
    ]
    return Body(json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"})


def v2_binary(photo: Photo) -> Body:
    """The Open Inference Protocol with Triton's binary extension: raw bytes after the JSON."""
    values = [
        len(value).to_bytes(4, "little") + value for value in (photo.shown, photo.text.encode())
    ]
    inputs = [
        {
            "name": name,
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(value)},
        }
        for name, value in zip(("image", "text"), values, strict=True)
    ]
    outputs = [{"name": "answer", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Body(head + b"".join(values), headers)


BODIES: Mapping[str, Callable[[Photo], Body]] = {
    "form": form,
    "handed-form": handed_form,
    "item-list": item_list,
    "v2-json": v2_json,
    "v2-binary": v2_binary,
}
