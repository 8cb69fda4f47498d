"""Answers without an engine, by an archive's own code.

``PYTHONPATH=FOLDER python -P -m vlserve.runtime.offline FOLDER`` answers an unpacked archive's
lines; `answer_offline` does so for an archive file.

Lines in:  {"id": …, "fields": {…}}, fields as in a JSON body; ``image_path`` (any ``…_path``) is
           read from disk into ``image`` instead.
Lines out: {"id": …, "answer": {…}} or {"id": …, "error": {"code", "message"}}, in the same order.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.errors import ArchiveError, ErrorCode
from vlserve.runtime.types import Answer, ItemError, Request

PATH_SUFFIX = "_path"


def answer_offline(
    archive: Path, items: Iterable[Mapping[str, Any]], batch_size: int = 8, threads: int = 1
) -> Generator[dict[str, Any], None, None]:
    """One line out (parsed) per item in, in order; closing the generator ends the process.

    Unpacks the archive and runs its frozen code in a process of its own, so that what is installed
    now cannot change an answer. ArchiveError when the archive is bad or its code fails.
    """
    with tempfile.TemporaryDirectory(prefix="vlserve-offline-") as scratch:
        folder = Path(scratch) / "archive"
        unpack_archive(archive, folder)
        lines = Path(scratch) / "items.jsonl"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in items)
        log = Path(scratch) / "stderr.txt"
        with _started(folder, lines, log, batch_size, threads) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            if process.wait() != 0:
                said = log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
                why = said[-1] if said else f"it exits with {process.returncode}"
                raise ArchiveError(f"the code of {archive.name} failed: {why}")


@contextmanager
def _started(
    folder: Path, lines: Path, log: Path, batch_size: int, threads: int
) -> Iterator["subprocess.Popen[bytes]"]:
    """The job over an unpacked archive, its folder first on the path; killed when left early."""
    command = [sys.executable, "-P", "-m", "vlserve.runtime.offline", str(folder)]
    options = ["--batch-size", str(batch_size), "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
    with lines.open("rb") as stdin, log.open("wb") as stderr:
        process = subprocess.Popen(
            command + options, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environment
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def main(arguments: list[str] | None = None) -> None:
    """Answer standard input on standard output."""
    parser = argparse.ArgumentParser(prog="python -m vlserve.runtime.offline")
    parser.add_argument("folder", type=Path, help="an unpacked archive, first on the path")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    # by name: the control service imports this module, and no chain of imports may lead it to torch
    folder = importlib.import_module("vlserve.runtime.folder")
    pipeline = folder.open_folder(chosen.folder, chosen.threads, frozen=True)
    lines = enumerate(sys.stdin.buffer, start=1)
    while batch := list(islice(lines, chosen.batch_size)):
        items = [_read_line(number, line) for number, line in batch]
        result = pipeline.run([request for _, request in items])
        for (item_id, _), answer in zip(items, result.answers, strict=True):
            sys.stdout.write(json.dumps(_line(item_id, answer)) + "\n")
        sys.stdout.flush()


def _read_line(number: int, line: bytes) -> tuple[Any, Request | ItemError]:
    """A line's id, as far as it can be read, and its request."""
    item_id = None
    try:
        item = json.loads(line)
        item_id = item.get("id")
        fields = dict(item["fields"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        why = f"line {number} is not {{id, fields}}: {error!r}"
        return item_id, ItemError(ErrorCode.BODY_UNREADABLE, why)
    try:
        for name in [name for name in fields if name.endswith(PATH_SUFFIX)]:
            fields[name.removesuffix(PATH_SUFFIX)] = Path(fields.pop(name)).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        return item_id, ItemError(ErrorCode.IMAGE_UNREADABLE, f"line {number}: {error}")
    return item_id, Request(fields, str(item_id))


def _line(item_id: Any, answer: Answer | ItemError) -> dict[str, Any]:
    if isinstance(answer, ItemError):
        return {"id": item_id, "error": {"code": answer.code, "message": answer.message}}
    return {"id": item_id, "answer": answer}


if __name__ == "__main__":
    main()
