"""Whether an INT8 archive answers like the fp32 one: the same items, asked of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlserve.batch.offline import answer_offline
from vlserve.errors import DataError
from vlserve.quantize.items import Line, requests_of, write_lines
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Answer
from vlserve.training.evaluators import evaluate

AGREEMENT = 0.99
DROP = 0.005
"""Half a point."""
FEWEST = 20
"""Items without which the gate says nothing: one that may differ is one in so many."""
BATCH = 8
RERANK = 4
"""Candidates that a matching model looks at again: 16, the default, would take minutes."""
METRICS: Mapping[str, tuple[str, ...]] = {
    "tag": ("accuracy",),
    "answer": ("accuracy",),
    "entail": ("accuracy",),
    "reason": ("accuracy",),
    "caption": ("cider_d",),
    "match": ("reranked_text_to_image_r1", "text_to_image_r1"),
    "embed": ("text_to_image_r1",),
    "ground": ("accuracy_iou_50", "pointing_accuracy"),
}
"""Task -> its main figure: the first that an evaluation has. Of multi-label tagging it is map."""


@dataclass(frozen=True)
class Verdict:
    """``agreed`` of ``answers`` have the same first answer; ``metric`` over ``items`` items."""

    agreed: int
    answers: int
    metric: str
    items: int
    fp32: float
    int8: float

    @property
    def agreement(self) -> float:
        return self.agreed / self.answers

    @property
    def passed(self) -> bool:
        """At most one answer in a hundred differs, or one; the metric falls by at most half a
        point, or by one item."""
        differ = self.answers - self.agreed
        limit = max(DROP, 1 / self.items)
        return differ <= max(1, (1 - AGREEMENT) * self.answers + 1e-9) and (
            self.fp32 - self.int8 <= limit + 1e-9
        )

    def __str__(self) -> str:
        return (
            f"{self.agreed} of {self.answers} first answers agree ({self.agreement:.1%}), "
            f"{self.metric} {self.fp32:.4f} -> {self.int8:.4f} on {self.items} items"
        )


Ask = Callable[[Path], Verdict]
"""An INT8 archive -> how it stands to the fp32 one."""


@dataclass(frozen=True)
class Gate:
    """Knows what the fp32 archive answers. ``data``: the gate's items as a file."""

    manifest: Manifest
    data: Path
    requests: tuple[Mapping[str, Any], ...]
    firsts: tuple[Any, ...]
    metric: str
    items: int
    fp32: float

    def judge(self, archive: Path) -> Verdict:
        """Ask the archive's own code, and compare its answers with the fp32 archive's."""
        firsts = _firsts(self.manifest, _answers(archive, self.requests))
        pairs = [
            (ours, theirs)
            for ours, theirs in zip(self.firsts, firsts, strict=True)
            if ours is not None
        ]
        figures = evaluate(archive, self.data, batch_size=BATCH, rerank=RERANK).figures
        return Verdict(
            agreed=sum(ours == theirs for ours, theirs in pairs),
            answers=len(pairs),
            metric=self.metric,
            items=self.items,
            fp32=self.fp32,
            int8=float(figures[self.metric]),
        )


def open_gate(archive: Path, manifest: Manifest, lines: Sequence[Line], folder: Path) -> Gate:
    """Ask the fp32 archive about every line. DataError: the task is not measured, or too few lines
    can be used."""
    if manifest.task not in METRICS:
        raise DataError(f"task {manifest.task} is not measured, so its INT8 cannot be judged")
    data = write_lines(folder / "gate.jsonl", lines)
    requests = tuple(fields for line in lines for fields in requests_of(line, manifest))
    figures = evaluate(archive, data, batch_size=BATCH, rerank=RERANK).figures
    names = ("map",) if manifest.task == "tag" and manifest.multi_label else METRICS[manifest.task]
    metric = next(name for name in names if name in figures)
    answers = _answers(archive, requests)
    usable = min(figures["items"], sum(answer is not None for answer in answers))
    if usable < FEWEST:
        raise DataError(
            f"the gate needs {FEWEST} items: of the {len(lines)} that the calibration file leaves "
            f"it, {usable} can be used; calibrate with more"
        )
    firsts = _firsts(manifest, answers)
    return Gate(manifest, data, requests, firsts, metric, figures["items"], float(figures[metric]))


def _answers(archive: Path, requests: Sequence[Mapping[str, Any]]) -> list[Answer | None]:
    """Return an answer to each request; None where it is refused."""
    entries = ({"id": at, "fields": fields} for at, fields in enumerate(requests))
    return [line.get("answer") for line in answer_offline(archive, entries, BATCH)]


def _firsts(manifest: Manifest, answers: Sequence[Answer | None]) -> tuple[Any, ...]:
    """Return what each answer says first, None of a request that was refused."""
    if manifest.task == "embed":
        return _nearest(answers)
    return tuple(answer and FIRST[manifest.task](answer) for answer in answers)


def _nearest(answers: Sequence[Answer | None]) -> tuple[int | None, ...]:
    """Return of each vector the place of the one that is nearest to it among the others."""
    places = [place for place, answer in enumerate(answers) if answer is not None]
    vectors = np.array([answer["embedding"] for answer in answers if answer is not None])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = dict(zip(places, cosines.argmax(axis=1), strict=True))
    return tuple(
        places[nearest[place]] if place in nearest else None for place in range(len(answers))
    )


def _place(answer: Answer) -> Any:
    """Return the best region's box, or where the heat map is highest."""
    return answer["regions"][0]["box"] if answer.get("regions") else answer["peak"]


FIRST: Mapping[str, Callable[[Answer], Any]] = {
    "tag": lambda answer: answer["tags"][0]["tag"],
    "answer": lambda answer: answer["answers"][0]["answer"],
    "entail": lambda answer: answer["label"],
    "reason": lambda answer: answer["answer"],
    "match": lambda answer: answer["probability"] >= 0.5,
    "caption": lambda answer: answer["caption"],
    "ground": _place,
}
"""What an answer says first; of a caption all of it."""
