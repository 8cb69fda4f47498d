"""Rows of text files, tar shards and folders, as lines for the workers.

A line is the input's own, of JSONL; or ROW_MARK and JSON: ``{"columns": {name: value}, "files":
{name: [path, offset, size]}}``, where ``files`` are fields whose bytes lie in a file, or
``{"error": why}`` for a row that cannot be read. Parquet is read by the workers themselves.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from vlserve.batch.members import FEATURES, IMAGES, Member, folder_members
from vlserve.batch.sources import COMPRESSIONS, Kind, Source
from vlserve.errors import DataError
from vlserve.extras import require_extras
from vlserve.text_files import encoding_hint
from vlserve_worker import video
from vlserve_worker.batch_order import ROW_MARK
from vlserve_worker.storage import READ_BYTES, AnyPath, read_range

MAX_LINE_BYTES = 64 * 1024**2
"""Of a row of a text file, which may hold an image as base64."""
MAX_MEMBER_BYTES = 1024**2
"""Of a text or JSON member of a tar shard."""


@dataclass
class Reading:
    """Where the reader of a source stands. ``share``: returns how much of it is read, 0 to 1."""

    share: Callable[[], float] = lambda: 0.0


def read_lines(source: Source, reading: Reading | None = None) -> Iterator[bytes]:
    """Yield a line for each row of ``source``, which is not Parquet, without its end.

    Args:
        reading: Is told how far the reader is.

    Raises:
        DataError: The file cannot be read on: its rows cannot be told apart any more.
        ExtraMissing: A video, and what decodes videos is not installed.
    """
    reading = reading or Reading()
    try:
        match source.kind:
            case Kind.JSONL:
                yield from _jsonl_lines(source.path, reading)
            case Kind.CSV | Kind.TSV:
                delimiter = "\t" if source.kind is Kind.TSV else ","
                yield from _csv_lines(source.path, delimiter, reading)
            case _:
                members = _tar_members if source.kind is Kind.TAR else _folder_members
                for row in _grouped(members(source.path, reading)):
                    yield _line(row)
    except UnicodeDecodeError as error:
        hint = encoding_hint(source.path) if isinstance(source.path, Path) else ""
        why = f"it is not UTF-8 at byte {error.start}{hint}"
        raise DataError(f"{source.path} cannot be read: {why}") from error
    except (OSError, EOFError, csv.Error, tarfile.TarError) as error:
        raise DataError(f"{source.path} cannot be read: {error}") from error
    finally:
        reading.share = lambda: 1.0


@contextmanager
def _opened(path: AnyPath, reading: Reading) -> Iterator[IO[bytes]]:
    with path.open("rb", buffering=0) as raw:
        size = max(path.stat().st_size, 1)
        reading.share = lambda: min(raw.tell() / size, 1.0)
        if path.suffix not in COMPRESSIONS:
            yield io.BufferedReader(raw, READ_BYTES)
            return
        import pyarrow  # of the extra batch; `find_sources` has asked for it

        with pyarrow.CompressedInputStream(
            io.BufferedReader(raw, READ_BYTES), COMPRESSIONS[path.suffix]
        ) as stream:
            yield io.BufferedReader(stream)


def _jsonl_lines(path: AnyPath, reading: Reading) -> Iterator[bytes]:
    with _opened(path, reading) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                yield _line({"error": f"the line has more than {MAX_LINE_BYTES} bytes"})
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                continue
            if content := line.strip():
                yield content


def _csv_lines(path: AnyPath, delimiter: str, reading: Reading) -> Iterator[bytes]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with (
        _opened(path, reading) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
    ):
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        heads = next(reader, None)
        if heads is None:
            return
        if len(set(heads)) < len(heads):
            raise DataError(f"{path}: two columns have the same name")
        for row in reader:
            if not row:
                continue
            if len(row) != len(heads):
                why = f"the row has {len(row)} columns, and the first line {len(heads)}"
                yield _line({"error": f"{why} (line {reader.line_num})"})
                continue
            yield _line({"columns": dict(zip(heads, row, strict=True))})


def _line(row: Mapping[str, Any]) -> bytes:
    # half of a surrogate pair, which JSON and names of files may hold, stays an escape
    return ROW_MARK + json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace")


def _tar_members(path: AnyPath, reading: Reading) -> Iterator[Member]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
        reading.share = lambda: min(shard.offset / size, 1.0)
        for entry in shard:
            if entry.isfile():
                yield Member(entry.name, path, entry.offset_data, entry.size)
            shard.members = []  # type: ignore[attr-defined]  # else it keeps each header that it read


def _folder_members(folder: AnyPath, reading: Reading) -> Iterator[Member]:
    members = folder_members(folder)
    for place, member in enumerate(members):
        reading.share = partial(float, place / len(members))
        yield member


def _grouped(members: Iterable[Member]) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each group of members with one key that follow each other."""
    group: list[Member] = []
    for member in members:
        if not member.makes_row:
            continue
        if group and member.key != group[0].key:
            yield _row(group)
            group = []
        group.append(member)
    if group:
        yield _row(group)


def _row(group: list[Member]) -> Mapping[str, Any]:
    columns: dict[str, Any] = {"id": group[0].key}
    files: dict[str, Any] = {}
    for member in group:
        place = [str(member.path), member.offset, member.size]
        if member.ending in IMAGES:
            files["image"] = place
        elif member.ending in video.ENDINGS:
            require_extras("video")
            files["video"] = place
        elif member.ending in FEATURES:
            files["features"] = place
        elif member.size > MAX_MEMBER_BYTES:
            return {"columns": columns, "error": f"{member.name} has over {MAX_MEMBER_BYTES} bytes"}
        else:
            try:
                columns |= _text_columns(member)
            except (ValueError, RecursionError) as error:
                return {"columns": columns, "error": f"{member.name} cannot be read: {error}"}
    return {"columns": columns, "files": files}


def _text_columns(member: Member) -> Mapping[str, Any]:
    text = read_range(member.path, member.offset, member.size).decode()
    if member.ending == "json":
        columns = json.loads(text)
        if not isinstance(columns, dict):
            raise ValueError("it is no JSON object")
        return columns
    return {"label" if member.ending == "cls" else "text": text.rstrip("\r\n")}
