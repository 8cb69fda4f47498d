"""Paths of files: on this machine, or objects of an S3 storage, through pyarrow.fs.

Knows nothing of vlserve, so that workers have it too. An object is named as pyarrow.fs names it:
``s3://bucket/a/b.parquet``, with ``?endpoint_override=http://HOST:PORT`` for a storage that is not
Amazon's. Whoever runs has the credentials (AWS_ACCESS_KEY_ID and the like), not the path.
"""

import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SCHEME = "s3://"
READ_BYTES = 1024**2
"""Of an object, at a time: each read is a request."""


@dataclass(frozen=True)
class ObjectState:
    """Of an object: its size in bytes, and when it was written, in ns."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or all objects below a prefix; has what is needed of `pathlib.Path`.

    ``key``: bucket and key; ``query``: settings of the storage, as in a URI; ``state``: what a
    listing has said already.
    """

    key: str
    query: str = ""
    state: ObjectState | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{SCHEME}{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> "AnyPath":
        if name.startswith("/"):
            return Path(name)
        if name.startswith(SCHEME):
            right = path_of(name)
            return self._at(right.key) if isinstance(right, ObjectPath) else right
        return self._at(posixpath.normpath(posixpath.join(self.key, name)))

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "ObjectPath":
        return self._at(posixpath.dirname(self.key))

    def with_suffix(self, suffix: str) -> "ObjectPath":
        return self._at(str(PurePosixPath(self.key).with_suffix(suffix)))

    def resolve(self) -> "ObjectPath":
        return self

    @property
    def file_system(self) -> Any:
        return _file_system(self.key.partition("/")[0], self.query)

    def stat(self) -> ObjectState:
        """Return size and time. FileNotFoundError where it is no object."""
        if self.state is not None:
            return self.state
        info = self.file_system.get_file_info(self.key)
        if not info.is_file:
            raise FileNotFoundError(2, "there is no such object", str(self))
        return ObjectState(info.size, info.mtime_ns or 0)

    def is_file(self) -> bool:
        return self.state is not None or bool(self.file_system.get_file_info(self.key).is_file)

    def is_dir(self) -> bool:
        """Return whether there is an object below it."""
        return self.state is None and any(True for _ in self.rglob("*"))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects below whose names match; ``*`` stays within a folder, ``**/`` not."""
        from pyarrow.fs import FileSelector

        expression = re.compile(_expression(pattern))
        selector = FileSelector(self.key, allow_not_found=True, recursive="/" in pattern)
        for info in self.file_system.get_file_info(selector):
            if info.is_file and expression.fullmatch(info.path[len(self.key) :].lstrip("/")):
                yield ObjectPath(info.path, self.query, ObjectState(info.size, info.mtime_ns or 0))

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        return self.glob(f"**/{pattern}")

    def open(self, mode: str = "rb", buffering: int = READ_BYTES) -> Any:
        """Open the object for reading, from any place on; ``buffering``: bytes a read, 0: as many
        as are asked for."""
        file = self.file_system.open_input_file(self.key)
        return io.BufferedReader(file, buffering) if buffering else file

    def read_bytes(self) -> bytes:
        return read_range(self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.file_system.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise
        except OSError:  # pyarrow also writes an object for the folder, which may be refused
            if self._at(self.key).is_file():
                raise

    def _at(self, key: str) -> "ObjectPath":
        return ObjectPath(key, self.query)


AnyPath = Path | ObjectPath


def path_of(text: str) -> AnyPath:
    """Return the path that ``text`` names. ValueError for an object without a bucket, or with a
    key or a password in its name."""
    if not text.startswith(SCHEME):
        return Path(text)
    key, _, query = text.removeprefix(SCHEME).partition("?")
    if not key.strip("/"):
        raise ValueError(f"{text} names no bucket")
    if "@" in key.partition("/")[0]:
        raise ValueError(f"{SCHEME}…@…: credentials belong into the environment, not into a path")
    return ObjectPath(key.rstrip("/"), query)


def name_below(path: AnyPath, folder: AnyPath) -> str:
    """Return the name of a path from a folder on, with slashes."""
    if isinstance(path, ObjectPath) and isinstance(folder, ObjectPath):
        return path.key[len(folder.key) + 1 :]
    return Path(str(path)).relative_to(str(folder)).as_posix()


def whole_seconds(path: AnyPath, time_ns: int) -> int:
    """Return when a path was written, of an object in whole seconds: storages say the rest of it in
    a listing alone."""
    return time_ns - time_ns % 10**9 if isinstance(path, ObjectPath) else time_ns


def read_range(path: AnyPath, offset: int = 0, size: int = -1) -> bytes:
    """Return ``size`` bytes from ``offset`` on; -1: up to the end."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        content = file.read() if size < 0 else file.read(size)
        return bytes(content)


def write_whole(path: AnyPath, content: bytes) -> None:
    """Write a file that appears whole: by a rename after a sync, or as one upload."""
    if isinstance(path, ObjectPath):
        with path.file_system.open_output_stream(path.key, compression=None) as upload:
            upload.write(content)
        return
    with appearing(path) as target:
        target.write_bytes(content)


@contextmanager
def appearing(path: AnyPath) -> Iterator[Path]:
    """Yield a file to write, which then appears whole at ``path``."""
    if isinstance(path, ObjectPath):
        with TemporaryDirectory(prefix="vlserve-upload-") as scratch:
            target = Path(scratch) / path.name
            yield target
            write_whole(path, target.read_bytes())
        return
    target = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}")
    try:
        yield target
        _sync(target)
        target.replace(path)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parquet_file(path: AnyPath) -> "ParquetFile":
    """Open a Parquet file."""
    from pyarrow.parquet import ParquetFile

    if isinstance(path, ObjectPath):
        return ParquetFile(path.key, filesystem=path.file_system)
    return ParquetFile(path)


@cache
def _file_system(bucket: str, query: str) -> Any:
    """Return the storage of a bucket, in whose region it is asked where ``query`` names none."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{SCHEME}{bucket}/key" + (f"?{query}" if query else ""))[0]


def _expression(pattern: str) -> str:
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    pieces = re.split(r"(\*\*/|\*\*|\*)", pattern)
    return "".join(kinds.get(piece) or re.escape(piece) for piece in pieces)
