"""Labels that look wrong, by what a model predicts: confident learning (Northcutt et al., Confident
Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021), by the package cleanlab.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.data.data_files import LeftOut, labels_of, read_objects
from vlserve.errors import DataError
from vlserve.training.json_lines import as_text


@dataclass(frozen=True)
class Issue:
    """An item whose label looks wrong. ``score``: the model's for ``label``; ``better``: the label
    that it gives the best score."""

    file: str
    line: int
    id: str
    label: str
    better: str
    score: float


@dataclass(frozen=True)
class Issues:
    """Most doubtful first. ``compared``: items with a prediction and one label that it knows."""

    compared: int
    issues: Sequence[Issue]


@dataclass(frozen=True)
class _Labelled:
    file: str
    line: int
    id: str
    label: str
    scores: NDArray[np.float32]


def find_issues(paths: Sequence[Path], predictions: Path) -> Issues:
    """Compare labels with predictions as `vlserve batch` writes them: ``id`` and ``tags``, which
    must name every label (``top_k``), by a model that has not seen the items.

    Raises:
        DataError: No item has a prediction, or predictions name one label only.
        ExtraMissing: cleanlab is not installed.
    """
    scores, names = _read_predictions(predictions)
    items = [item for path in paths for item in _labelled(path, scores, set(names))]
    present = {item.label for item in items}
    columns = [index for index, name in enumerate(names) if name in present]
    if len(columns) < 2:
        raise DataError(
            f"{predictions} and the data have {len(items)} items in common, with {len(columns)} "
            "labels that predictions name: two are needed"
        )
    matrix = np.stack([item.scores[columns] for item in items]).astype(np.float64)
    matrix = (matrix + 1e-9) / (matrix + 1e-9).sum(axis=1, keepdims=True)
    classes = [names[index] for index in columns]
    labels = np.array([classes.index(item.label) for item in items])
    order = _ranked(labels, matrix)
    return Issues(len(items), [_issue(items[at], matrix[at], classes) for at in order])


def _ranked(labels: NDArray[np.int64], matrix: NDArray[np.float64]) -> Sequence[int]:
    from cleanlab.filter import find_label_issues

    places = find_label_issues(
        labels, matrix, return_indices_ranked_by="self_confidence", n_jobs=1, verbose=False
    )
    return [int(place) for place in places]


def _issue(item: _Labelled, scores: NDArray[np.float64], names: Sequence[str]) -> Issue:
    score = round(float(scores[names.index(item.label)]), 4)
    better = names[int(scores.argmax())]
    return Issue(item.file, item.line, item.id, item.label, better, score)


def _read_predictions(path: Path) -> tuple[Mapping[str, NDArray[np.float32]], Sequence[str]]:
    names: dict[str, int] = {}
    rows: dict[str, Mapping[str, float]] = {}
    left_out = LeftOut()
    for line, _, fields in read_objects(path, left_out):
        try:
            tags = {tag["tag"]: float(tag["score"]) for tag in fields["tags"]}
        except (KeyError, TypeError, ValueError):
            left_out.add(path, line, "it has no tags with scores")
            continue
        rows[str(fields.get("id"))] = tags
        for tag in tags:
            names.setdefault(tag, len(names))
    left_out.refuse(path, len(rows), strict=False)
    return {key: _vector(tags, names) for key, tags in rows.items()}, list(names)


def _vector(tags: Mapping[str, float], names: Mapping[str, int]) -> NDArray[np.float32]:
    vector = np.zeros(len(names), np.float32)
    for tag, score in tags.items():
        vector[names[tag]] = score
    return vector


def _labelled(path: Path, scores: Mapping[str, NDArray[np.float32]], names: set[str]) -> Any:
    for line, _, fields in read_objects(path, LeftOut()):
        row_id, labels = str(as_text(fields.get("id"))), labels_of(fields)
        if row_id in scores and len(labels) == 1 and labels[0] in names:
            yield _Labelled(path.name, line, row_id, labels[0], scores[row_id])
