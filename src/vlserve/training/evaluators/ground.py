"""Task ground: is what the phrase means where the model says?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from vlserve.errors import DataError
from vlserve.exporter.regions import read_numbers
from vlserve.runtime.errors import RequestError
from vlserve.runtime.image import upright_size
from vlserve.runtime.types import Answer
from vlserve.training.evaluators.items import Boxes, Corners, GroundItem, TaskFile
from vlserve.training.evaluators.job import Job, Result
from vlserve.training.metrics.boxes import (
    RIGHT_FROM,
    box_iou,
    box_of_map,
    pixel_iou,
    points_into,
)
from vlserve.training.metrics.confidence import means


def evaluate(job: Job) -> Result:
    """Return of a model of regions ``accuracy_iou_50`` and ``mean_iou`` of the best box. Of one
    with a heat map ``pointing_accuracy``; and the first two over the ``box_items`` that have boxes
    to choose from, by which of them the map chooses."""
    file = job.read(GroundItem)
    outputs = job.manifest.graphs["model"].outputs
    of_regions = any(tensor.name == "region_scores" for tensor in outputs)
    best_alone = {"top_k": 1} if of_regions else {}
    requests = [{**job.look(item.look), "text": item.text, **best_alone} for item in file.items]
    file, answers = job.answered(file, requests)
    if of_regions:
        return _regions(file, answers)
    return _maps(job, file, answers)


def _regions(file: TaskFile[GroundItem], answers: Sequence[Answer]) -> Result:
    ious = [
        box_iou(answer["regions"][0]["box"], item.box)
        for answer, item in zip(answers, file.items, strict=True)
    ]
    return Result({"items": len(ious), **means(_of_boxes(ious))}, file.bad_lines)


def _maps(job: Job, file: TaskFile[GroundItem], answers: Sequence[Answer]) -> Result:
    ious: list[float] = []
    reasons: dict[int, str] = {}
    hits: dict[int, bool] = {}
    for (line, item), answer in zip(file.by_line.items(), answers, strict=True):
        try:
            if item.boxes is not None:
                ious.append(_iou_of_choice(job, item, item.boxes, answer))
        except (DataError, RequestError) as error:
            reasons[line] = str(error)
        else:
            hits[line] = points_into(answer["peak"], item.box)
    file = job.leave_out(file, reasons)
    values = {"pointing_accuracy": [float(hit) for hit in hits.values()]}
    figures = means(values | (_of_boxes(ious) if ious else {}))
    return Result({"items": len(hits), "box_items": len(ious), **figures}, file.bad_lines)


def _of_boxes(ious: Sequence[float]) -> dict[str, list[float]]:
    return {
        "accuracy_iou_50": [float(iou >= RIGHT_FROM) for iou in ious],
        "mean_iou": list(ious),
    }


def _iou_of_choice(job: Job, item: GroundItem, boxes: Boxes, answer: Answer) -> float:
    """Return the IoU in pixels of the image, as ALBEF's evaluation does; 0 where the map chooses
    none."""
    assert item.img is not None
    width, height = upright_size(job.file_of(item.img).read_bytes())
    corners = _read_boxes(job, boxes)
    scale = np.array([width, height, width, height])
    *candidates, true = (_with_sizes(box, scale) for box in (*corners, item.box))
    place = box_of_map(np.array(answer["grid"]), candidates, width, height)
    return 0.0 if place is None else pixel_iou(candidates[place], true)


def _with_sizes(corners: Sequence[float], scale: NDArray[np.int64]) -> list[float]:
    """Convert x1, y1, x2, y2 in fractions to x, y, width, height in pixels."""
    x1, y1, x2, y2 = (np.asarray(corners) * scale).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _read_boxes(job: Job, boxes: Boxes) -> Sequence[Corners]:
    if not isinstance(boxes, str):
        return boxes
    rows = read_numbers(job.file_of(boxes))
    try:
        return TypeAdapter(tuple[Corners, ...]).validate_python(rows.tolist())
    except ValueError as error:
        raise DataError(f"boxes {boxes} cannot be read: {error}") from error
