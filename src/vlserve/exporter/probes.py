"""Requests that travel in an archive with the answers that its own code gave to them."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlserve.batch.offline import answer_offline
from vlserve.errors import ExportError
from vlserve.exporter.pack import HANDLERS_DIR
from vlserve.project import Folder
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.folder import open_folder
from vlserve.runtime.manifest import RegionInput
from vlserve.runtime.task import load_task
from vlserve.runtime.types import Answer, ItemError, Request

TEXTS = ("cute cat video 可爱的猫咪", "今天做一道家常菜", "Final match highlights! 🏆 2024")
REGIONS = (3, 5, 2)
"""Of the drawn features, where a model takes any number."""
_SIZES = ((128, 96), (90, 160), (64, 64))


def drawn_requests(
    manifest: Mapping[str, Any], handlers: Folder = HANDLERS_DIR
) -> list[dict[str, Any]]:
    """Return requests as JSON fields, made by the manifest's task of three drawings of everything
    that its model takes: images, features with boxes (in turns where it takes both), texts."""
    task = load_task(handlers / f"{manifest['task']}.py")
    return [
        fields for index in range(len(TEXTS)) for fields in task.examples(_drawn(manifest, index))
    ]


def probes_of(
    manifest: Mapping[str, Any],
    requests: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    handlers: Folder = HANDLERS_DIR,
) -> list[dict[str, Any]]:
    """Return requests and what they must be answered with, for the manifest; without pictures."""
    pictures = load_task(handlers / f"{manifest['task']}.py").pictures
    return [
        {
            "fields": dict(fields),
            "answer": {name: value for name, value in answer.items() if name not in pictures},
        }
        for fields, answer in zip(requests, answers, strict=True)
    ]


def _drawn(manifest: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return values of every field that a model may take, twice where a task is about two
    images."""
    fields: dict[str, Any] = {"text": TEXTS[index]} if manifest.get("text") else {}
    takes_both = manifest.get("image") and manifest.get("regions")
    for suffix, seed in (("", index), ("2", index + 1)):
        if manifest.get("image") and not (takes_both and index % 2):
            fields[f"image{suffix}"] = drawn_image(seed)
        elif manifest.get("regions"):
            regions = drawn_regions(manifest, seed)
            fields |= {f"{name}{suffix}": value for name, value in regions.items()}
    return fields


def drawn_regions(manifest: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return features as base64 of a .npy file, and boxes where the model takes them."""
    spec = RegionInput.model_validate(manifest["regions"])
    visual = [
        tensor["dims"][-2]
        for graph in manifest["graphs"].values()
        for tensor in graph["inputs"]
        if tensor["name"] == "visual"
    ]
    some = min(REGIONS[seed % len(REGIONS)], spec.max_regions)
    regions = visual[0] if visual and isinstance(visual[0], int) else some
    random = np.random.default_rng(seed)
    features = random.standard_normal((regions, spec.dim)).astype(np.float16)
    file = io.BytesIO()
    np.save(file, np.maximum(features, 0))  # as after a ReLU, where features come from
    fields: dict[str, Any] = {"features": base64.b64encode(file.getvalue()).decode("ascii")}
    if spec.boxes:
        corners = np.sort(random.integers(0, 64, (regions, 2, 2)), axis=1)
        corners[:, 1] += 1  # none is empty
        fields["boxes"] = (corners.reshape(regions, 4) / 64).tolist()
    return fields


def drawn_image(seed: int) -> str:
    """Return a small picture as base64: of an even seed a JPEG, of an odd one a PNG."""
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
    """Return what the archive's own code answers, each request alone, in a fresh process that sees
    the frozen copy. ExportError when it cannot answer one."""
    items = [{"id": index, "fields": fields} for index, fields in enumerate(requests)]
    lines = answer_offline(archive, items, batch_size=1)
    return [_answer(line.get("answer"), line.get("error", {}).get("message")) for line in lines]


def answer_in_process(
    archive: Path, requests: Sequence[Mapping[str, Any]], folder: Path
) -> list[Answer]:
    """Answer by the code of this process, unpacked into the empty ``folder``: in
    milliseconds, for an archive that was packed from this code just now."""
    unpack_archive(archive, folder)
    result = open_folder(folder).run([Request(fields, "probe") for fields in requests])
    return [
        _answer(None, reply.message) if isinstance(reply, ItemError) else reply
        for reply in result.answers
    ]


def _answer(reply: Answer | None, error: str | None) -> Answer:
    if reply is None:
        raise ExportError(f"the archive cannot answer its probe: {error}")
    return reply
