"""Answers to requests in memory, by the worker of offline jobs: what evaluation, the gate of INT8
and an archive's probes ask."""

import json
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlserve.batch.job import JobFolder, Options
from vlserve.batch.parts import cut
from vlserve.batch.run import Crewing, Job, Show, describe
from vlserve.errors import BatchError
from vlserve.runtime.errors import ArchiveError
from vlserve_worker.batch_columns import PATH_SUFFIX
from vlserve_worker.batch_files import read_output
from vlserve_worker.batch_parts import parts_in

__all__ = ["PATH_SUFFIX", "answer_offline"]

ITEM_TIMEOUT_S = 600.0
_NO_COLUMN = "(none)"
"""Items are called by their place, and a field may have any name."""


def answer_offline(
    archive: Path,
    items: Iterable[Mapping[str, Any]],
    batch_size: int = 8,
    threads: int = 1,
    show: Show | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Yield one line for each item, in order, by the archive's own code in a process of its own.

    Args:
        archive: The archive file.
        items: ``{"id": …, "fields": {…}}``, fields as in a JSON body; ``image_path`` (any
            ``…_path``) is a file, read into ``image`` instead.
        batch_size: How many items the graphs get at once, at the most.
        threads: Of the process.
        show: Takes lines of progress.

    Yields:
        ``{"id": …, "answer": {…}}`` or ``{"id": …, "error": {"code", "message"}}``.

    Raises:
        ArchiveError: The archive is bad, or its code does not start.
    """
    ids: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="vlserve-offline-") as scratch:
        file = Path(scratch) / "items.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for item in items:
                ids.append(item["id"])
                lines.write(json.dumps(item["fields"]) + "\n")
        out = Path(scratch) / "out"
        try:
            crewing = Crewing(1, threads, ITEM_TIMEOUT_S, batch_size)
            _answer(archive, file, out, crewing, show or (lambda line: None))
        except BatchError as error:
            raise ArchiveError(f"the code of {archive.name} failed: {error}") from error
        rows = (row for part in parts_in(out, "jsonl").values() for row in read_output(part))
        for item_id, row in zip(ids, rows, strict=True):
            yield {"id": item_id, **_outcome(row)}


def _answer(archive: Path, file: Path, out: Path, crewing: Crewing, show: Show) -> None:
    record = describe(archive, [str(file)], Options(id=_NO_COLUMN))
    folder = JobFolder(out)
    with folder.locked() as locks:
        job = Job(folder, record, crewing, show)
        job.answer(job.orders(cut(record.sources), {}), locks)


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    if "error_code" in row:
        return {"error": {"code": row["error_code"], "message": row["error_message"]}}
    return {"answer": {name: value for name, value in row.items() if name not in ("id", "row")}}
