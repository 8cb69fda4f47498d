"""Many versions of one model to register one after the other, with the answers each must give."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

from vlserve.exporter.echo import LABELS, pack_echo
from vlserve.exporter.pack import draft_of, pack_archive
from vlserve.exporter.probes import answer_by_archive
from vlserve.runtime.archive import verify_archive
from vlserve.testing.clients import Answers, Question


@dataclass(frozen=True)
class Edition:
    """One version: its archive, and its right answers to the questions."""

    version: int
    archive: Path
    answers: Answers


def echo_editions(
    folder: Path, model: str, questions: Sequence[Question], delay_ms: float = 0.0
) -> Iterator[Edition]:
    """Yield versions 1, 2, 3, … without weights; neighbours answer differently."""
    fields = [question.fields for question in questions]
    answers: dict[int, Answers] = {}
    for version in count(1):
        shift = version % len(LABELS)
        archive = pack_echo(folder, model, version, answer_shift=shift, delay_ms=delay_ms)
        if shift not in answers:
            answers[shift] = answer_by_archive(archive, fields)
        yield Edition(version, archive, answers[shift])


def repacked_editions(
    folder: Path, archives: Sequence[Path], questions: Sequence[Question]
) -> Iterator[Edition]:
    """Yield the archives in turn, under the version numbers 1, 2, 3, … of the first one's model."""
    fields = [question.fields for question in questions]
    model = verify_archive(archives[0]).model
    answers: dict[Path, Answers] = {}
    for version, archive in zip(count(1), cycle(archives), strict=False):
        copy = _repack(folder, archive, model, version)
        if archive not in answers:
            answers[archive] = answer_by_archive(copy, fields)
        yield Edition(version, copy, answers[archive])


def editions_of(
    folder: Path, archives: Sequence[Path] | None, questions: Sequence[Question]
) -> Iterator[Edition]:
    """Return editions of the given archives, or of an Echo tagger where there are none."""
    if archives:
        return repacked_editions(folder, archives, questions)
    return echo_editions(folder, "echo", questions)


def _repack(folder: Path, archive: Path, model: str, version: int) -> Path:
    manifest = verify_archive(archive)
    own = [name for name in manifest.files if name.startswith(("graphs/", "assets/"))]
    with zipfile.ZipFile(archive) as content:
        members = {name: content.read(name) for name in own}
    return pack_archive(folder, {**draft_of(manifest), "model": model, "version": version}, members)
