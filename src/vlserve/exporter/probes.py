"""Requests that travel in an archive with the answers that its own code gave to them."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlserve.errors import ExportError
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.contract import Answer, ItemError, Request
from vlserve.runtime.folder import open_folder
from vlserve.runtime.offline import answer_offline

TEXTS = ("cute cat video 可爱的猫咪", "今天做一道家常菜", "Final match highlights! 🏆 2024")
_SIZES = ((128, 96), (90, 160), (64, 64))


def drawn_requests(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Three requests, as JSON fields, with an image and a text where the manifest has them."""
    requests = []
    for index, text in enumerate(TEXTS):
        image = {"image": drawn_image(index)} if manifest.get("image") else {}
        requests.append(image | ({"text": text} if manifest.get("text") else {}))
    return requests


def drawn_image(seed: int) -> str:
    """A small picture as base64: of an even seed a JPEG, of an odd one a PNG."""
    width, height = _SIZES[seed % len(_SIZES)]
    shade = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (shade, shade.rotate(180), shade.point(lambda value: value // 2)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8 + 5 * seed, 10, width // 2 + 5 * seed, height // 2), fill=(230, 60, 40 * seed))
    draw.rectangle((width // 2, height // 2, width - 6, height - 9), fill=(20, 90 + 50 * seed, 200))
    file = io.BytesIO()
    image.save(file, "PNG" if seed % 2 else "JPEG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def answer_by_archive(archive: Path, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """What the archive's own code answers, each request alone, in a fresh process that sees the
    frozen copy. ExportError when it cannot answer one."""
    items = [{"id": index, "fields": fields} for index, fields in enumerate(requests)]
    lines = answer_offline(archive, items, batch_size=1)
    return [_answer(line.get("answer"), line.get("error", {}).get("message")) for line in lines]


def answer_in_process(
    archive: Path, requests: Sequence[Mapping[str, Any]], folder: Path
) -> list[Answer]:
    """The same by the code of this process, unpacked into the empty ``folder``: in milliseconds,
    for an archive that was packed from this code just now."""
    unpack_archive(archive, folder)
    result = open_folder(folder).run([Request(fields, "probe") for fields in requests])
    return [
        _answer(None, given.message) if isinstance(given, ItemError) else given
        for given in result.answers
    ]


def _answer(given: Answer | None, error: str | None) -> Answer:
    if given is None:
        raise ExportError(f"the archive cannot answer its probe: {error}")
    return given
