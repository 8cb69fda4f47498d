"""The items of a calibration file: those to calibrate on, those that the gate asks about.

Lines are those of `vlserve evaluate`. A part of the file is written as a file of its own, so that
the evaluators read it like any other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlserve.runtime.inputs import takes_text, takes_visual
from vlserve.runtime.manifest import Manifest
from vlserve.training.json_lines import BadLine, numbered_lines, parse_object, refuse_mostly_bad

CALIBRATED = 64
"""Items to calibrate on, at the most; never more than a third of the file."""
FEWEST = 60
"""Of a file with fewer items all calibrate, and the gate asks about all of them too."""
FILES = ("img", "img2", "features", "features2", "boxes", "boxes2")
"""Fields that name files, relative to the items' own."""

Line = Mapping[str, Any]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """``held_out``: whether the gate's items are others than those that calibrate."""

    calibrated: tuple[Line, ...]
    gated: tuple[Line, ...]
    held_out: bool


def read_parts(path: Path) -> Parts:
    """Read a calibration file. DataError where no line is a JSON object, or more than half are not;
    the others are left out. Those that calibrate are spread evenly over the file."""
    lines: list[Line] = []
    bad: list[BadLine] = []
    for number, raw in numbered_lines(path):
        try:
            lines.append(_with_whole_paths(parse_object(raw), path.parent))
        except ValueError as error:
            bad.append(BadLine(str(path), number, str(error)))
    refuse_mostly_bad(path, len(lines), bad)
    if len(lines) < FEWEST:
        return Parts(tuple(lines), tuple(lines), held_out=False)
    count = min(CALIBRATED, len(lines) // 3)
    places = {len(lines) * at // count for at in range(count)}
    return Parts(
        tuple(line for at, line in enumerate(lines) if at in places),
        tuple(line for at, line in enumerate(lines) if at not in places),
        held_out=True,
    )


def write_lines(path: Path, lines: Sequence[Line]) -> Path:
    """Read a file of one JSON object a line."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def requests_of(line: Line, manifest: Manifest) -> list[Fields]:
    """Return what a client would ask about an item, as vlserve.batch.offline takes it: one
    request; of task match one a text, of task embed also the image alone. Empty where the item
    lacks a field."""
    look = _look(line, manifest, "")
    captions = line.get("captions", line.get("text"))
    texts = [captions] if isinstance(captions, str) else list(captions or ())
    if manifest.task == "embed":
        alone = [look] if "image" in manifest.graphs else []
        return alone + ([{"text": text} for text in texts] if "text" in manifest.graphs else [])
    looks = look | (_look(line, manifest, "2") if manifest.task == "reason" else {})
    if manifest.task == "caption" or not takes_text(manifest):
        return [looks]
    return [{**looks, "text": text} for text in texts]


def _look(line: Line, manifest: Manifest, suffix: str) -> Fields:
    """Return an image, or features where there are and the model reads them."""
    if not takes_visual(manifest):
        return {}
    regions, features = manifest.regions, line.get(f"features{suffix}")
    image, boxes = line.get(f"img{suffix}"), line.get(f"boxes{suffix}")
    if regions is None or features is None:
        return {} if image is None else {f"image{suffix}_path": image}
    fields: Fields = {f"features{suffix}_path": features}
    if regions.boxes and boxes is not None:
        fields[f"boxes{suffix}_path" if isinstance(boxes, str) else f"boxes{suffix}"] = boxes
    return fields


def _with_whole_paths(line: Line, folder: Path) -> Line:
    files = {name: line[name] for name in FILES if isinstance(line.get(name), str)}
    return {**line, **{name: str((folder / file).resolve()) for name, file in files.items()}}
