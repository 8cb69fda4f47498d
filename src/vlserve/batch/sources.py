"""Input files: which there are, of which kind, and whether they are still those of a job."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from glob import glob
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from vlserve.batch.members import folder_members, listing
from vlserve.errors import DataError
from vlserve.extras import require_extras
from vlserve_worker.storage import AnyPath, ObjectPath, path_of, whole_seconds

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Of text kinds; as pyarrow's streams, which read them, name them."""


StoredPath = Annotated[
    AnyPath,
    PlainValidator(lambda path: path_of(path) if isinstance(path, str) else path),
    PlainSerializer(str),
]


class Kind(StrEnum):
    """How an input file is read."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    TAR = "tar"
    FOLDER = "folder"


SUFFIXES = {
    ".jsonl": Kind.JSONL,
    ".ndjson": Kind.JSONL,
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".parquet": Kind.PARQUET,
    ".tar": Kind.TAR,
}


class Source(BaseModel):
    """One input file or folder, as it was when the job began. ``size``: in bytes; of a folder 0;
    ``listing``: of a folder a digest of the names, sizes and times of its files; empty in jobs that
    earlier versions began."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    path: StoredPath
    kind: Kind
    size: int
    changed_ns: int
    listing: str = ""


def find_sources(patterns: Sequence[str], out: AnyPath | None = None) -> tuple[Source, ...]:
    """Return the files that the patterns name, each once, in their order; a pattern's in the order
    of their names.

    Args:
        out: The folder of the job's output: no glob means what lies there.

    Raises:
        DataError: A pattern names nothing, a file of a kind that is not read, or ``out`` itself.
        ExtraMissing: Parquet or a compressed file, and pyarrow is not installed.
    """
    own = out.resolve() if out else None
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern, own))
    if own in paths:
        raise DataError(f"--input {own} is the folder of the output: choose another --output")
    return tuple(_source(path) for path in paths)


def weight(source: Source) -> int:
    """Return the bytes of a source, of a folder those of its rows' files."""
    if source.kind is not Kind.FOLDER:
        return source.size
    return sum(member.size for member in folder_members(source.path))


def changed(before: Sequence[Source], now: Sequence[Source]) -> Iterator[str]:
    """Yield a line for each source of the same paths that is not what it was."""
    for earlier, later in zip(before, now, strict=True):
        if _state(earlier) != _state(later) or (
            earlier.listing and earlier.listing != later.listing
        ):
            yield f"{earlier.path} has changed since the job began"


def _state(source: Source) -> tuple[Kind, int, int]:
    return source.kind, source.size, whole_seconds(source.path, source.changed_ns)


def _matches(pattern: str, out: AnyPath | None) -> list[AnyPath]:
    try:
        pattern_path = path_of(pattern)
    except ValueError as error:
        raise DataError(f"--input {error}") from error
    if isinstance(pattern_path, ObjectPath):
        return _matching_objects(pattern_path, out)
    if Path(pattern).exists():
        return [Path(pattern).resolve()]
    names = sorted(glob(pattern, recursive=True))  # noqa: PTH207  # relative and absolute ones
    paths = [path for name in names if not _lies_in(path := Path(name).resolve(), out)]
    if not paths:
        raise DataError(f"--input {pattern}: there is no such file or folder")
    return [*paths]


def _lies_in(path: AnyPath, folder: AnyPath | None) -> bool:
    if isinstance(path, ObjectPath):
        return (
            isinstance(folder, ObjectPath)
            and path.query == folder.query
            and f"{path.key}/".startswith(f"{folder.key}/")
        )
    return isinstance(folder, Path) and path.is_relative_to(folder)


def _matching_objects(pattern: ObjectPath, out: AnyPath | None) -> list[AnyPath]:
    require_extras("batch")
    folder, star, _ = pattern.key.partition("*")
    try:
        if not star:
            if not pattern.exists():
                raise DataError(f"--input {pattern}: there is no such object")
            return [pattern]
        root = ObjectPath(folder.rpartition("/")[0], pattern.query)
        matches = sorted(root.glob(pattern.key[len(root.key) + 1 :]))
    except OSError as error:
        raise DataError(f"--input {pattern} cannot be read: {error}") from error
    objects = [path for path in matches if not _lies_in(path, out)]
    if not objects:
        raise DataError(f"--input {pattern}: there is no such object")
    return [*objects]


def _source(path: AnyPath) -> Source:
    try:
        if path.is_dir():
            digest = listing(folder_members(path))
            return Source(path=path, kind=Kind.FOLDER, size=0, changed_ns=0, listing=digest)
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    kind = kind_of(path)
    if kind is Kind.PARQUET or path.suffix in COMPRESSIONS:
        require_extras("batch")
    return Source(path=path, kind=kind, size=state.st_size, changed_ns=state.st_mtime_ns)


def kind_of(path: AnyPath) -> Kind:
    """Return the kind that a file's name says. DataError where it says none that is read."""
    packed = path.suffix in COMPRESSIONS
    kind = SUFFIXES.get((path.with_suffix("") if packed else path).suffix.lower())
    if kind is None or (packed and kind in (Kind.PARQUET, Kind.TAR)):
        if packed and kind is Kind.TAR:
            raise DataError(f"{path}: unpack it to .tar, whose members are read where they lie")
        raise DataError(
            f"{path} is of no kind that is read: {', '.join(SUFFIXES)}, text kinds also as "
            f"{' or '.join(COMPRESSIONS)}, or a folder of images or videos"
        )
    return kind
