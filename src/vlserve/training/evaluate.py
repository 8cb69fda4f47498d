"""Figures of a tagger on a labelled JSONL file, through its archive or through its checkpoint."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlserve.batch.offline import answer_offline
from vlserve.errors import DataError
from vlserve.exporter.export import read_trained
from vlserve.processor import usable_cores
from vlserve.runtime.archive import verify_archive
from vlserve.runtime.inputs import takes_text, takes_visual
from vlserve.runtime.manifest import Manifest
from vlserve.settings import Settings, load_settings
from vlserve.training.data import (
    Item,
    ItemFile,
    count_labels,
    leave_out_other_kind,
    leave_out_unknown,
    read_items,
)
from vlserve.training.dataset import read_serving
from vlserve.training.json_lines import BadLine, refuse_bad_lines
from vlserve.training.metrics.tagging import Metrics, measure, predict
from vlserve.training.samples import decode_images, to_samples, to_targets
from vlserve.training.tagger_learning import score

RESAMPLES = 1000
"""Bootstrap draws behind the intervals."""

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Prediction:
    """One item: its true labels, the predicted ones (best first), and every label's score."""

    id: str
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Figures over the usable items, each item's prediction in the file's order, and the lines that
    were left out."""

    metrics: Metrics
    predictions: tuple[Prediction, ...]
    bad_lines: tuple[BadLine, ...]


def evaluate_archive(
    archive: Path,
    data: Path,
    *,
    batch_size: int = 8,
    strict: bool = False,
    map_labels: Collection[str] | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Run every item of ``data`` through the archive's own code in a process of its own.

    ``map_labels`` restricts mean average precision to these labels, e.g. `frequent_labels`. Raises
    DataError (no usable line; any bad one if ``strict``; an archive that does not tag) or
    ArchiveError.
    """
    manifest = verify_archive(archive)
    if manifest.task != "tag":
        raise DataError(f"{archive.name} serves task {manifest.task}: only tagging can be measured")
    fields = {"img": takes_visual(manifest), "text": takes_text(manifest)}
    items = read_items(data, [name for name in fields if fields[name]])
    file = leave_out_other_kind(items, multi_label=manifest.multi_label)
    file = leave_out_unknown(file, manifest.labels)
    refuse_bad_lines((file,), strict=strict)
    rows: list[list[float]] = []
    reasons: dict[int, str] = {}
    requests = _requests(file.items, manifest)
    lines = answer_offline(archive, requests, batch_size, threads=usable_cores(), show=progress)
    for item, line in zip(file.items, lines, strict=True):
        if "error" in line:
            reasons[item.line] = f"{line['error']['code']}: {line['error']['message']}"
        else:
            scores = {entry["tag"]: entry["score"] for entry in line["answer"]["tags"]}
            rows.append([scores[label] for label in manifest.labels])
    if progress:
        progress(f"answered {len(file.items)} of {len(file.items)} items")
    return _evaluation(
        file.without(reasons),
        np.array(rows, dtype=np.float64),
        manifest.labels,
        multi_label=manifest.multi_label,
        strict=strict,
        map_labels=map_labels,
    )


def evaluate_checkpoint(
    recipe: str,
    checkpoint: Path,
    data: Path,
    *,
    strict: bool = False,
    map_labels: Collection[str] | None = None,
    settings: Settings | None = None,
) -> Evaluation:
    """Return the figures through the training code: the network of ``checkpoint`` (config.json
    beside it), not exported. Raises as `evaluate_archive` and `read_trained` do."""
    source = read_trained(recipe, checkpoint, None, settings or load_settings())
    labels: Sequence[str] = source.config["labels"]
    multi_label = bool(source.config["multi_label"])
    image, tokenizer = read_serving(source.recipe, source.config)
    file = leave_out_other_kind(read_items(data), multi_label=multi_label)
    file, images = decode_images(leave_out_unknown(file, labels), image)
    refuse_bad_lines((file,), strict=strict)
    samples = to_samples(file.items, images, tokenizer, labels)
    scores = score(source.network, samples, multi_label=multi_label)
    return _evaluation(
        file, scores, labels, multi_label=multi_label, strict=strict, map_labels=map_labels
    )


def frequent_labels(train: Path, at_least: int) -> set[str]:
    """Return the labels that ``at_least`` items of a training file have."""
    counts = count_labels(read_items(train).items)
    return {label for label, count in counts.items() if count >= at_least}


def _requests(items: Sequence[Item], manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield offline requests of what the model takes, which ask for every label's score."""
    for item in items:
        fields: dict[str, Any] = {"top_k": len(manifest.labels)}
        if takes_visual(manifest):
            fields["image_path"] = str(item.image.resolve())
        if takes_text(manifest):
            fields["text"] = item.text
        yield {"id": item.id, "fields": fields}


def _evaluation(
    file: ItemFile,
    scores: NDArray[np.float64],
    labels: Sequence[str],
    *,
    multi_label: bool,
    strict: bool,
    map_labels: Collection[str] | None,
) -> Evaluation:
    bad_lines = refuse_bad_lines((file,), strict=strict)
    columns = (
        None if map_labels is None else [i for i, label in enumerate(labels) if label in map_labels]
    )
    metrics = measure(
        to_targets(file.items, labels),
        scores,
        multi_label=multi_label,
        map_columns=columns,
        resamples=RESAMPLES,
    )
    decisions = predict(scores, multi_label=multi_label)
    predictions = (
        _prediction(item, row, decision_row, labels)
        for item, row, decision_row in zip(file.items, scores, decisions, strict=True)
    )
    return Evaluation(metrics, tuple(predictions), bad_lines)


def _prediction(
    item: Item, scores: NDArray[np.float64], decisions: NDArray[np.int64], labels: Sequence[str]
) -> Prediction:
    best_first = np.argsort(-scores, kind="stable")
    return Prediction(
        id=item.id,
        labels=item.labels,
        predicted=tuple(labels[index] for index in best_first if decisions[index]),
        scores=dict(zip(labels, scores.tolist(), strict=True)),
    )
