"""One worker of an offline job: answers one part after the other by an archive's own code.

``PYTHONPATH=FOLDER python -P -m vlserve_worker.batch FOLDER OPTIONS REPLIES`` with an unpacked
archive in FOLDER. Orders come as JSON lines on standard input, replies go as JSON lines to the file
descriptor REPLIES, because the archive's code may print. It ends when standard input does.

An order names a part; the part's file appears whole, its receipt after it. A part whose worker died
is ordered again ``careful``: row by row, each noted before it runs, so that the guilty row is known
and what was answered is kept.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlserve.runtime.folder import open_folder
from vlserve.runtime.pipeline import Pipeline
from vlserve_worker.adopted import is_adopted
from vlserve_worker.batch_columns import Columns, InputRow, ItemError
from vlserve_worker.batch_files import (
    OWN_COLUMNS,
    OutputRow,
    read_parquet,
    read_spool,
    writer_of,
)
from vlserve_worker.batch_order import Order
from vlserve_worker.batch_parts import PartFiles
from vlserve_worker.batch_videos import Covers
from vlserve_worker.storage import SCHEME, AnyPath, path_of
from vlserve_worker.video import FrameChoice

WINDOW_BATCHES = 8
"""Batches of rows that are read ahead, so that those of like length share a batch."""
ROW_ID, ROW, CODE, MESSAGE = OWN_COLUMNS
BEAT_S = 1.0
MOST_TRIES = {"worker_killed": 2}
"""How often a row runs alone, by how its worker ended: a worker may be killed for no fault of the
row's, as by the kernel that is out of memory."""


@dataclass
class Tally:
    """What a receipt says of a part."""

    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def count(self, row: OutputRow, labels: Sequence[str]) -> None:
        self.rows += 1
        if code := row.get(CODE):
            self.errors[str(code)] += 1
        self.labels.update(labels)


class PartWorker:
    """An open archive, and how its answers are written."""

    def __init__(
        self,
        pipeline: Pipeline,
        columns: Columns,
        covers: Covers,
        out: AnyPath,
        format: str,
        batch: int,
    ) -> None:
        self._pipeline = pipeline
        self._columns = columns
        self._covers = covers
        self._out = out
        self._batch = batch
        self._writer = writer_of(format, pipeline.task.answer, columns.keep)
        self._beat: Callable[[int], None] = lambda rows: None

    def run(self, order: Order, beat: Callable[[int], None]) -> dict[str, Any]:
        """Answer a part and return its receipt; ``beat`` is told of each batch how many rows."""
        self._beat = beat
        files = PartFiles(self._out, order.number, self._writer.suffix)
        start, cpu = time.monotonic(), time.process_time()
        beside = path_of(order.folder or order.input)
        rows = self._columns.rows(self._lines(order), order.first_row, beside)
        if order.redo:
            before = self._writer.read(files.part)
            output = self._again(rows, {int(row[ROW]): row for row in before})
        elif order.careful:
            output = self._one_by_one(rows, files, order.fate)
        else:
            output = self._in_windows(rows)
        tally, output_rows = Tally(), []
        for row, labels in output:
            tally.count(row, labels)
            output_rows.append(row)
        receipt = {
            "part": order.number,
            "first_row": order.first_row,
            "rows": tally.rows,
            "errors": dict(tally.errors),
            "labels": dict(tally.labels.most_common(1000)),
            "seconds": round(time.monotonic() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "ended_at": round(time.time(), 3),
            "pid": os.getpid(),
        }
        files.finish(
            lambda path: self._writer.write(path, output_rows),
            (str(row[ROW_ID]) for row in output_rows),
            receipt,
            redo=order.redo,
        )
        return receipt

    def _lines(self, order: Order) -> Iterator[Any]:
        if order.spool:
            return read_spool(Path(order.spool))
        names = self._columns.parquet_names
        return read_parquet(
            path_of(order.input), order.row_group, order.start, order.count, names, self._columns.id
        )

    def _in_windows(self, rows: Iterator[InputRow]) -> Iterator[tuple[OutputRow, list[str]]]:
        while window := list(islice(rows, WINDOW_BATCHES * self._batch)):
            places = sorted(range(len(window)), key=lambda place: window[place].length)
            answers_by_row: dict[int, tuple[OutputRow, list[str]]] = {}
            for start in range(0, len(places), self._batch):
                batch = places[start : start + self._batch]
                answers = self._answers([window[place] for place in batch])
                answers_by_row |= dict(zip(batch, answers, strict=True))
            yield from (answers_by_row[place] for place in range(len(window)))

    def _again(
        self, rows: Iterator[InputRow], before: Mapping[int, OutputRow]
    ) -> Iterator[tuple[OutputRow, list[str]]]:
        for row in rows:
            earlier = before.get(row.row)
            if earlier is None or earlier.get(CODE):
                yield from self._answers([row])
            else:
                yield earlier, self._labels(earlier)

    def _one_by_one(
        self, rows: Iterator[InputRow], files: PartFiles, fate: Sequence[str]
    ) -> Iterator[tuple[OutputRow, list[str]]]:
        earlier = files.partial_rows()
        note = files.note() or {}
        suspect, tries = note.get("suspect"), int(note.get("tries", 0))
        before = {int(row[ROW]): row for row in earlier}
        if fate and suspect and int(suspect[ROW]) not in before:
            if tries >= MOST_TRIES.get(fate[0], 1):
                guilty = suspect | {CODE: fate[0], MESSAGE: fate[1]}
                files.add_partial(guilty)
                before[int(suspect[ROW])] = guilty
        else:
            tries = 0
        for row in rows:
            if row.row in before:
                yield before[row.row], self._labels(before[row.row])
                continue
            attempts = tries if suspect and int(suspect[ROW]) == row.row else 0
            files.write_note({"suspect": self._prototype(row), "tries": attempts + 1})
            for output, labels in self._answers([row]):
                files.add_partial(output)
                yield output, labels

    def _answers(self, rows: Sequence[InputRow]) -> list[tuple[OutputRow, list[str]]]:
        answered_rows: list[tuple[OutputRow, list[str]]] = []
        answers = self._pipeline.run([row.item(self._covers) for row in rows]).answers
        for row, answer in zip(rows, answers, strict=True):
            output = self._prototype(row)
            if isinstance(answer, ItemError):
                answered_rows.append(
                    (output | {CODE: str(answer.code), MESSAGE: answer.message}, [])
                )
            else:
                answered_rows.append(
                    (output | answer, list(self._pipeline.task.scores(answer))[:1])
                )
        self._beat(len(rows))
        return answered_rows

    def _prototype(self, row: InputRow) -> OutputRow:
        return {ROW_ID: row.id, ROW: row.row, **row.kept}

    def _labels(self, row: OutputRow) -> list[str]:
        return [] if row.get(CODE) else list(self._pipeline.task.scores(row))[:1]


class Beat:
    """Says that a part goes on, about once a second."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._rows = 0
        self._said_at = time.monotonic()

    def __call__(self, rows: int) -> None:
        self._rows += rows
        if time.monotonic() - self._said_at >= BEAT_S:
            self._said_at = time.monotonic()
            self._say(self._rows)


def _start_handler(pipeline: Pipeline, most: int) -> int:
    """Start the handler of an adopted archive; return how many of at most ``most`` rows it gets at
    once: no more than its own batch size, as many read a batch's first row alone."""
    from vlserve.runtime.task import Surroundings  # not in archives of earlier runtimes

    adopted = pipeline.manifest.adopted
    batch = min(most, adopted.batch_size) if adopted else most
    pipeline.task.start(Surroundings(batch_size=batch))
    return batch


def _from(here: Path, text: str) -> str:
    """Return a path as it is meant in ``here``: the handler of an adopted archive works in a folder
    of its own."""
    return text if not text or text.startswith(SCHEME) else str(here / text)


def _order(line: bytes, here: Path) -> Order:
    order = Order(**json.loads(line))
    return replace(
        order,
        input=_from(here, order.input),
        spool=_from(here, order.spool),
        folder=_from(here, order.folder),
    )


def main() -> None:
    """Run the worker."""
    here = Path.cwd()
    folder, options, replies = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    pipeline = open_folder(folder, int(options["threads"]), frozen=True)
    batch = int(options["batch"])
    if is_adopted(folder):
        batch = _start_handler(pipeline, batch)
    fields = list(pipeline.task.fields.model_fields)
    columns = Columns(options["id"], dict(options["columns"]), tuple(options["keep"]), fields)
    covers = Covers(FrameChoice.parse(options["frame"]))
    out = path_of(_from(here, options["out"]))
    worker = PartWorker(pipeline, columns, covers, out, options["format"], batch)
    with os.fdopen(replies, "w", encoding="utf-8", buffering=1) as stream:

        def reply(**fields: Any) -> None:
            stream.write(json.dumps(fields) + "\n")

        reply(ready=True)
        for line in sys.stdin.buffer:
            order = _order(line, here)
            beat = Beat(lambda rows: reply(rows=rows))
            try:
                reply(receipt=worker.run(order, beat))
            except OSError as error:  # not of an item: what is written, or spooled
                reply(failed=error.strerror or str(error))


if __name__ == "__main__":
    main()
