"""Figures of an archive of any task, on a file of items: one evaluator a task."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vlserve.errors import DataError
from vlserve.runtime.archive import verify_archive
from vlserve.training.evaluators import answer, caption, choice, ground, retrieval, tag
from vlserve.training.evaluators.job import Job, OnProgress, Result

EVALUATORS: Mapping[str, Callable[[Job], Result]] = {
    "tag": tag.evaluate,
    "answer": answer.evaluate,
    "entail": choice.evaluate_entail,
    "reason": choice.evaluate_reason,
    "caption": caption.evaluate,
    "match": retrieval.evaluate_match,
    "embed": retrieval.evaluate_embed,
    "ground": ground.evaluate,
}
"""By task."""


def evaluate(
    archive: Path,
    data: Path,
    *,
    batch_size: int = 8,
    strict: bool = False,
    rerank: int = 16,
    progress: OnProgress | None = None,
) -> Result:
    """Ask the archive's own code about every item of ``data``, in a process of its own.

    Raises DataError (no usable line; any bad one if ``strict``; a task that is not measured) or
    ArchiveError.
    """
    manifest = verify_archive(archive)
    if manifest.task not in EVALUATORS:
        raise DataError(f"{archive.name}: task {manifest.task} is not measured")
    job = Job(archive, manifest, data, batch_size, strict, rerank, progress)
    return EVALUATORS[manifest.task](job)
